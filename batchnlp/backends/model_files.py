"""A model on disk, checked before anything is started. No torch here: config and tokenizer are JSON.

Refused: no config or tokenizer, weights only as pickles (loading one can run anything), and repositories that bring
code (`auto_map`, `.py` files, a nested `trust_remote_code`), because `trust_remote_code=False` alone does not cover
them all.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from batchnlp.errors import ModelError
from batchnlp.types import ModelFiles
from batchnlp.words import nearest

PACKAGE = "package:"
CARD = "README.md"  # what the hub, and batchnlp.evaluate.card, call a model's card
PIN = "sha256:"  # a revision of this form pins the weights of a directory or package
HUB_PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.spm",
    "*.jinja",
    "*/config.json",
    "*/model.safetensors",
]
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
                   "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"]  # fmt: skip
WRITING_FILES = ["chat_template.jinja", "generation_config.json", "source.spm", "target.spm"]  # they too change answers
NO_LIMIT = 1 << 20  # tokenizers without a limit say 1e30
# Relative positions: the config's number is no limit.
LIMITLESS_POSITIONS = {"t5", "mt5", "umt5", "deberta-v2", "xlnet"}
# Positions that begin after the padding token's id: so many fewer tokens than the config's number.
OFFSET_POSITIONS = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text",
                    "longformer", "mpnet", "luke", "ibert", "esm", "layoutlmv3", "lilt", "markuplm"}  # fmt: skip


def resolve_model(name: str, revision: str | None, max_length: int | None = None) -> ModelFiles:
    """The model called `name`: a directory, `package:NAME`, or a hub name. ModelError where it must not be loaded."""
    try:
        return _resolve(name, revision, max_length)
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror}: {error.filename}", "make it readable") from None


def _resolve(name: str, revision: str | None, max_length: int | None) -> ModelFiles:
    path, found = _locate(name, revision)
    _refuse_code(name, path)
    config = _json(path / "config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
        if pickles:
            hint = "convert it with save_pretrained(), which writes safetensors; loading a pickle can run any code"
            raise ModelError(f"{name} has its weights only as pickles ({pickles[0]})", hint)
        raise ModelError(f"{name} has no weights", f"{path} holds no *.safetensors")
    if revision and revision.startswith(PIN):
        _check_pin(name, weights, found := revision)
    if not any((path / file).is_file() for file in TOKENIZER_FILES if not file.endswith("config.json")):
        raise ModelError(f"{name} has no tokenizer", f"{path} needs a tokenizer.json; save the tokenizer there too")
    modules, limit = _sentence_modules(name, path)
    return ModelFiles(
        name=name,
        path=str(path),
        revision=found,
        weights=_hash_all(weights + sorted(path.glob("*/model.safetensors"))),
        tokenizer=_hash_all([path / file for file in TOKENIZER_FILES + WRITING_FILES if (path / file).is_file()]),
        config=config,
        max_length=_max_length(name, path, config, limit, max_length),
        modules=modules,
        card=_hash(card) if (card := path / CARD).is_file() else "",
    )


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """(directory, revision)."""
    if not name.strip():
        raise ModelError("task.model is empty", "give a hub name, a directory, or package:NAME")
    if name.startswith(PACKAGE):
        return _in_package(name), "local"
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is no model directory", "it has no config.json")
        return path.resolve(), "local"
    if path.exists():
        raise ModelError(f"{path} is a file", "the model is a directory with config.json, tokenizer and safetensors")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise ModelError(
            f"no model directory {path}", f"did you mean {path.parent / near}?" if near else "check the path"
        )
    return _from_hub(name, revision)


def _in_package(name: str) -> Path:
    module = name.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the Python package {module} is not installed", f"pip install {module.replace('_', '-')}")
    root = Path(spec.submodule_search_locations[0])
    for path in (root, root / "model"):
        if (path / "config.json").is_file():
            return path
    raise ModelError(f"the Python package {module} holds no model", f"{root} has no config.json")


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        message = f"no model {name}" + (f" at revision {revision}" if revision else "")
        raise ModelError(message, _from_hub_hint(error)) from None
    if not (path / "config.json").is_file():
        raise ModelError(f"{name} is no transformers model", "the repository has no config.json")
    return path, path.name


def _from_hub_hint(error: Exception) -> str:
    """What the hub's error comes to: its own words are a page."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    here = "there is no directory of that name"
    if isinstance(error, GatedRepoError):
        return "the hub gives it to those who agreed to its terms; do so there, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{here}, and none on the hub that you may see; a private one needs HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "the hub has the model, but not that revision"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else "the hub cannot be reached"
        return f"{here}, the hub's cache does not hold it, and {why}"
    return f"{here}, and the hub fails: {' '.join(str(error).split())[:200]}"


def _refuse_code(name: str, path: Path) -> None:
    code = sorted(p.name for p in path.glob("*.py"))
    if code and not name.startswith(PACKAGE):
        raise ModelError(f"{name} brings code ({code[0]})", "batchnlp runs only models that transformers itself knows")
    for file in sorted(path.glob("*.json")) + sorted(path.glob("*/config.json")):
        if file.stat().st_size < 1 << 20 and file.name != "tokenizer.json":
            key = _code_key(_json(file))
            if key:
                hint = "batchnlp runs only models that transformers itself knows"
                raise ModelError(f"{name} asks to run code of its own ({key} in {file.name})", hint)


def _code_key(tree: Any) -> str:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "auto_map" or (key == "trust_remote_code" and value):
                return str(key)
        tree = list(tree.values())
    if isinstance(tree, list):
        return next(filter(None, map(_code_key, tree)), "")
    return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read", str(error)) from None


def _sentence_modules(name: str, path: Path) -> tuple[tuple[dict[str, Any], ...], int | None]:
    """(the sentence-transformers modules after the transformer, the length limit they set)."""
    if not (path / "modules.json").is_file():
        return (), None
    found: list[dict[str, Any]] = []
    limit = None
    for module in _json(path / "modules.json"):
        kind = module["type"].rpartition(".")[2]
        file = path / module["path"] / "config.json"
        if kind == "Transformer":
            bert = next(
                iter(sorted((path / module["path"]).glob("sentence_*_config.json"))), None
            )  # bert, roberta, ...
            tree = _json(bert) if bert else {}
            limit = tree.get("max_seq_length")
            found += [{"type": "LowerCase"}] if tree.get("do_lower_case") else []
        elif kind == "Pooling":
            tree = _json(file)
            without = {"without_prompt": True} if tree.get("include_prompt") is False else {}
            found.append({"type": kind, "modes": _pooling_modes(name, tree), **without})
        elif kind == "Dense":
            config = _json(file)
            keep = {key: config[key] for key in ("in_features", "out_features", "bias")}
            activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
            found.append({"type": kind, "path": module["path"], "activation": activation, **keep})
        elif kind == "Normalize":
            found.append({"type": kind})
        else:
            raise ModelError(f"{name} has a sentence-transformers module {kind}", "known: Pooling, Dense, Normalize")
    file = path / "config_sentence_transformers.json"
    prompts = _json(file) if file.is_file() else {}
    if prompt := (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")):
        found.append({"type": "Prompt", "text": prompt})
    return tuple(found), limit


POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


def _pooling_modes(name: str, config: dict[str, Any]) -> list[str]:
    if "pooling_mode" in config:  # the newer form: one name, or several
        modes = config["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else list(modes)
        modes = ["last" if mode == "lasttoken" else mode for mode in modes]
    else:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [POOLING_KEYS.get(key, key) for key in POOLING_KEYS if key in on]
        modes += [key for key in on if key not in POOLING_KEYS]
    unknown = [mode for mode in modes if mode not in POOLING_KEYS.values()]
    if unknown or not modes:
        raise ModelError(f"{name} pools by {unknown[0] if unknown else 'nothing'}", "known: mean, cls, max, last")
    return modes


def _max_length(name: str, path: Path, config: dict[str, Any], modules: int | None, asked: int | None) -> int:
    """The least of what the positions, the tokenizer and sentence-transformers allow; `asked` goes up to the first."""
    hard = _positions(config)
    if asked is not None:
        if asked > hard:
            message = f"task.max_length {asked} is over the model's {hard} positions"
            raise ModelError(message, f"at most {hard} for {name}")
        return asked
    file = path / "tokenizer_config.json"
    by_tokenizer = _json(file).get("model_max_length") if file.is_file() else None
    return min(int(limit) for limit in (hard, min(by_tokenizer or NO_LIMIT, NO_LIMIT), modules) if limit and limit > 0)


def _positions(config: dict[str, Any]) -> int:
    """Tokens that the model has positions for: more would index past the end."""
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or NO_LIMIT)
    kind = config.get("model_type")
    if positions < 0 or kind in LIMITLESS_POSITIONS:
        return NO_LIMIT
    return positions - first_position(config)


def first_position(config: dict[str, Any]) -> int:
    """The position of a sequence's first token."""
    kind, pad = config.get("model_type"), config.get("pad_token_id")
    if kind not in OFFSET_POSITIONS:
        return 0
    return 2 if pad is None or kind == "mpnet" else int(pad) + 1  # mpnet's padding token is 1, whatever the config says


def _check_pin(name: str, weights: list[Path], pin: str) -> None:
    found = [_hash(file) for file in weights]
    if found != [pin.removeprefix(PIN)]:
        hint = f"its {weights[0].name} has {PIN}{found[0]}"
        raise ModelError(f"{name} is not the model that task.revision pins ({pin})", hint)


def _hash_all(files: list[Path]) -> str:
    return hashlib.sha256("".join(_hash(file) for file in files).encode()).hexdigest()


def _hash(file: Path) -> str:
    """sha256 of a file: the name of the hub's blob where there is one, else computed once and remembered by mtime."""
    target = file.resolve()
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    stat = target.stat()
    if stat.st_size < 1 << 20:
        return hashlib.sha256(target.read_bytes()).hexdigest()
    key = hashlib.sha256(f"{target}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    cached = _cache_dir() / key
    try:
        return cached.read_text()
    except OSError:
        with target.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        _remember(cached, found)
        return found


def _cache_dir() -> Path:
    base = os.environ.get("BATCHNLP_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "batchnlp"
    )
    return Path(base) / "weights"


def _remember(cached: Path, found: str) -> None:
    """A read-only home is no reason to fail: then the hash is computed each time."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f"{cached.name}.{os.getpid()}")
        temporary.write_text(found)
        temporary.replace(cached)
    except OSError:
        return
