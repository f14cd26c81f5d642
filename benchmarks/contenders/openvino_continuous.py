"""OpenVINO GenAI's continuous batching. optimum-intel exports the torch model, once, beside it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from harness.contender import Facts, Settings, serve
from harness.prompts import Prompts


class Continuous:
    """The pipeline with room for all rows; a new one each round, since its cache would know the prompts from the last."""

    def __init__(self, setup: Facts) -> None:
        work = setup["work"]
        self._prompts = {False: Prompts.read(work["prompts"]), True: Prompts.read(work["sample_prompts"])}
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.cache_size = setup["settings"].get("rows", 64), 2
        scheduler.max_num_batched_tokens, scheduler.dynamic_split_fuse = 4096, True
        scheduler.enable_prefix_caching = True
        precision = "bf16" if setup["dtype"] == "bfloat16" else "f32"
        self._pipeline = lambda: genai.ContinuousBatchingPipeline(exported(work["path"]), scheduler, "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision,
            "INFERENCE_NUM_THREADS": setup["threads"],
        })  # fmt: skip

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """All prompts at once; each with the length of its answer."""
        prompts = self._prompts[sample]
        pipeline, texts = self._pipeline(), prompts.lists()
        self._answers(pipeline, [text[::-1] for text in texts[:8]], [8] * len(texts[:8]))  # warm, and nothing of use kept
        began = perf_counter()
        written = self._answers(pipeline, texts, prompts.most.tolist())
        seconds = perf_counter() - began
        if written != prompts.useful:
            raise RuntimeError(f"{written} tokens instead of {prompts.useful}")
        return {"units": written, "seconds": seconds}

    def _answers(self, pipeline: Any, texts: list[list[int]], most: list[int]) -> int:
        """How many tokens were written."""
        configs = []
        for tokens in most:
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
            configs.append(config)
        ids = [ov.Tensor(np.array([text], np.int64)) for text in texts]
        return sum(len(answer.m_generation_ids[0]) for answer in pipeline.generate(ids, configs))


def exported(path: str) -> str:
    """The directory of the model as OpenVINO's, with weights as they are."""
    folder = Path(path) / "openvino"
    if not (folder / "openvino_detokenizer.xml").exists():
        import openvino_tokenizers
        from optimum.intel import OVModelForCausalLM
        from transformers import AutoTokenizer

        model = OVModelForCausalLM.from_pretrained(path, export=True, load_in_8bit=False, compile=False)
        model.save_pretrained(folder)
        pair = openvino_tokenizers.convert_tokenizer(AutoTokenizer.from_pretrained(path), with_detokenizer=True)
        for name, part in zip(("tokenizer", "detokenizer"), pair, strict=True):
            ov.save_model(part, folder / f"openvino_{name}.xml")
    return str(folder)


if __name__ == "__main__":
    serve(Continuous)
