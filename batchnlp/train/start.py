"""What a training starts from: a model that is there, or a shape with new weights and a tokenizer of one's own.

A shape is an architecture and a size. Sizes go from what a CPU learns in minutes to GPT-2 (`gpt2-base`, 124 M).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchnlp.backends.model_files import TOKENIZER_FILES, WRITING_FILES, resolve_model
from batchnlp.errors import ModelError, SpecError
from batchnlp.job.train import TrainSpec
from batchnlp.text.encode import Tokenizer
from batchnlp.types import ModelFiles
from batchnlp.words import nearest

SIZES = {
    "mini": (128, 4, 4),
    "small": (256, 6, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
}  # width, layers, heads
ARCHITECTURES = ("gpt2", "llama", "bart", "t5")
FRAMES = {"gpt2": "{bos} $A", "llama": "{bos} $A", "bart": "$A {eos}", "t5": "$A {eos}"}
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "bart": ("BartConfig", "BartForConditionalGeneration"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}
LONGEST = 512  # tokens, where the spec does not say and the model would take more
SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


@dataclass(frozen=True, slots=True)
class Start:
    """What is loaded. Filled by `find_start`."""

    path: str  # directory with the tokenizer, and the model where there is one
    max_length: int
    model: ModelFiles | None  # None for a shape
    shape: str = ""
    config: str = ""  # of a shape, as JSON

    @property
    def about(self) -> dict[str, Any]:
        """Where the weights come from."""
        if self.model is None:
            return {"shape": self.shape, "config": json.loads(self.config)}
        return {"name": self.model.name, "revision": self.model.revision, "weights": self.model.weights}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, as a job loads it."""
        return Tokenizer.load(self.path)

    def special(self) -> dict[str, int | None]:
        """Ids of the pad, bos, eos, unk, ... tokens."""
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False, local_files_only=True)
        return {name: getattr(found, f"{name}_token_id") for name in ("pad", "bos", "eos", "unk", "cls", "sep")}


def find_start(spec: TrainSpec) -> Start:
    """The model or shape of a spec, checked. ModelError, SpecError."""
    if spec.model is not None:
        files = resolve_model(spec.model, spec.revision, spec.max_length)
        return Start(files.path, spec.max_length or min(files.max_length, LONGEST), files)
    assert spec.shape is not None
    assert spec.tokenizer is not None
    architecture, _, size = spec.shape.partition("-")
    known = [f"{a}-{s}" for a in ARCHITECTURES for s in SIZES]
    if spec.shape not in known:
        near = nearest(spec.shape, known)
        raise SpecError(f"there is no shape {spec.shape}", f"did you mean {near}?" if near else ", ".join(known))
    writes = architecture in ("gpt2", "llama")
    if writes != (spec.kind == "lm"):
        fit = [a for a in ARCHITECTURES if (a in ("gpt2", "llama")) == (spec.kind == "lm")]
        raise SpecError(f"the shape {spec.shape} cannot learn {spec.kind}", f"take {fit[0]}-{size} or {fit[1]}-{size}")
    path = Path(spec.tokenizer).expanduser()
    if not (path / "tokenizer.json").is_file():
        raise ModelError(f"{path} holds no tokenizer.json", "batchnlp train tokenizer makes one")
    return Start(str(path.resolve()), spec.max_length or LONGEST, None, spec.shape, json.dumps(spec.config))


def framed(start: Start, folder: Path) -> Start:
    """For a shape: its tokenizer in `folder`, with the special tokens around a text that the architecture wants."""
    if start.model is not None:
        return start
    from tokenizers import Tokenizer as Fast
    from tokenizers import processors

    copy_tokenizer(start.path, folder, start.max_length)
    ids = start.special()
    missing = [name for name in ("bos", "eos", "pad") if ids[name] is None]
    if missing:
        message = f"the tokenizer in {start.path} has no {missing[0]} token, which {start.shape} needs"
        raise ModelError(message, "train it with algorithm=bpe or unigram, which have one")
    fast: Any = Fast.from_file(str(folder / "tokenizer.json"))
    names = {name: fast.id_to_token(ids[name]) for name in ("bos", "eos")}
    frame = FRAMES[start.shape.partition("-")[0]].format(**names)
    special = [(token, fast.token_to_id(token)) for token in names.values()]
    fast.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    fast.save(str(folder / "tokenizer.json"))
    return replace(start, path=str(folder))


def copy_tokenizer(source: str, target: Path, limit: int | None = None) -> None:
    """The files of a tokenizer; `limit` becomes the tokens that it says a model takes, as jobs read it."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, *WRITING_FILES):
        file = Path(source) / name
        if file.is_file():
            shutil.copyfile(file, target / name)
    config = target / "tokenizer_config.json"
    if limit is not None and config.is_file():
        tree = json.loads(config.read_text(encoding="utf-8"))
        tree["model_max_length"] = min(limit, tree.get("model_max_length") or limit)
        config.write_text(json.dumps(tree, indent=1), encoding="utf-8")


def new_model(start: Start) -> Any:
    """A model of the shape with new weights, drawn from torch's seed."""
    import transformers

    architecture, _, size = start.shape.partition("-")
    width, layers, heads = SIZES[size]
    ids = start.special()
    common = {
        "vocab_size": start.tokenizer().fast.get_vocab_size(with_added_tokens=True), "pad_token_id": ids["pad"],
        "bos_token_id": ids["bos"], "eos_token_id": ids["eos"],
    }  # fmt: skip
    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": start.max_length},
        "llama": {"hidden_size": width, "intermediate_size": width * 8 // 3 // 32 * 32, "num_hidden_layers": layers,
                  "num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": True,
                  "max_position_embeddings": start.max_length},
        "bart": {"d_model": width, "encoder_layers": layers // 2, "decoder_layers": layers // 2,
                 "encoder_attention_heads": heads, "decoder_attention_heads": heads, "encoder_ffn_dim": 4 * width,
                 "decoder_ffn_dim": 4 * width, "max_position_embeddings": start.max_length,
                 "decoder_start_token_id": ids["eos"], "forced_eos_token_id": None},
        "t5": {"d_model": width, "d_kv": width // heads, "d_ff": 4 * width, "num_layers": layers // 2,
               "num_heads": heads, "decoder_start_token_id": ids["pad"], "n_positions": start.max_length},
    }  # fmt: skip
    config, model = (getattr(transformers, name) for name in CLASSES[architecture])
    changes = json.loads(start.config)
    unknown = [key for key in changes if key not in config().to_dict()]
    if unknown:
        near = nearest(unknown[0], list(config().to_dict()))
        raise SpecError(
            f"config: {architecture} knows no {unknown[0]}", f"did you mean {near}?" if near else "leave it out"
        )
    return model(config(**(common | sizes[architecture] | changes)))
