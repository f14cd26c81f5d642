"""OpenVINO GenAI's continuous batching. optimum-intel exports the torch model, once, beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from harness.contender import Facts, Settings, serve
from harness.prompts import Prompts


class Continuous:
    """The pipeline with room for all rows."""

    def __init__(self, setup: Facts) -> None:
        work = setup["work"]
        self._prompts = {False: Prompts.read(work["prompts"]), True: Prompts.read(work["sample_prompts"])}
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.cache_size = setup["settings"].get("rows", 64), 2
        scheduler.max_num_batched_tokens, scheduler.dynamic_split_fuse = 4096, True
        scheduler.enable_prefix_caching = True
        self._pipeline = genai.ContinuousBatchingPipeline(exported(work["path"]), scheduler, "CPU", {
            "INFERENCE_PRECISION_HINT": "bf16" if setup["dtype"] == "bfloat16" else "f32",
            "KV_CACHE_PRECISION": "bf16" if setup["dtype"] == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": setup["threads"],
        })  # fmt: skip

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """All prompts at once; each with the length of its answer."""
        prompts = self._prompts[sample]
        configs = []
        for most in prompts.most.tolist():
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = most, True, False
            configs.append(config)
        ids = [ov.Tensor(np.array([text], np.int64)) for text in prompts.lists()]
        found = self._pipeline.generate(ids, configs)
        written = sum(len(answer.m_generation_ids[0]) for answer in found)
        if written != prompts.useful:
            raise RuntimeError(f"{written} tokens instead of {prompts.useful}")
        return {"units": written}


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
