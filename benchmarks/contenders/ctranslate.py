"""CTranslate2, of the model converted once beside it; answers sorted by length, which it does not know by itself."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np
from harness.contender import Facts, Settings, serve
from harness.prompts import Prompts
from transformers import AutoConfig, AutoTokenizer


class CTranslate2:
    """A generator, or a translator for encoder-decoders; `compute` is CTranslate2's name of a precision."""

    def __init__(self, setup: Facts) -> None:
        work, settings = setup["work"], setup["settings"]
        self._prompts = {False: Prompts.read(work["prompts"]), True: Prompts.read(work["sample_prompts"])}
        self._seq2seq = AutoConfig.from_pretrained(work["path"]).is_encoder_decoder
        make = ctranslate2.Translator if self._seq2seq else ctranslate2.Generator
        folder, compute = converted(work["path"]), settings.get("compute") or setup["dtype"]
        self._model = make(folder, device="cpu", compute_type=compute, intra_threads=setup["threads"], inter_threads=1)
        self._words = AutoTokenizer.from_pretrained(work["path"]).convert_ids_to_tokens
        self.facts: Facts = {"compute": self._model.compute_type}

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """All prompts, in batches of answers of like length."""
        prompts, size = self._prompts[sample], settings["batch"]
        texts, order, written = prompts.lists(), np.argsort(prompts.most), 0
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            written += self._batch([self._words(texts[i]) for i in chosen], int(prompts.most[chosen].max()))
        if written < prompts.useful:
            raise RuntimeError(f"{written} tokens, {prompts.useful} were asked for")
        return {"units": prompts.useful}

    def _batch(self, words: list[list[str]], new: int) -> int:
        if self._seq2seq:
            found = self._model.translate_batch(
                words, beam_size=1, max_decoding_length=new, min_decoding_length=new, max_input_length=0
            )
            return sum(len(answer.hypotheses[0]) for answer in found)
        found = self._model.generate_batch(
            words, beam_size=1, max_length=new, min_length=new, include_prompt_in_result=False
        )
        return sum(len(answer.sequences_ids[0]) for answer in found)


def converted(path: str) -> str:
    """The directory of the model as CTranslate2's."""
    folder = Path(path) / "ctranslate2"
    if not (folder / "model.bin").exists():
        ctranslate2.converters.TransformersConverter(path).convert(str(folder), force=True)
    return str(folder)


if __name__ == "__main__":
    serve(CTranslate2)
