"""How translation models are told of languages, read from their files: codes as tokens, words in a prefix, or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from batchnlp.errors import SpecError
from batchnlp.types import ModelFiles
from batchnlp.words import nearest

CODED = {"m2m_100", "nllb-moe", "mbart", "plbart"}
CODE = re.compile(r"__([a-z]{2,3})__|([a-z]{2,3}_[A-Z][A-Za-z]{1,3})|(__(?:java|python|en_XX)__)")
MARIAN_CODE = re.compile(r">>([\w-]+)<<")
NAMES = {  # ISO 639-1 to what a prefix says
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian",
    "sr": "Serbian", "sv": "Swedish", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def codes(model: ModelFiles) -> dict[str, str]:
    """What a user writes → the token, of a model that takes language codes."""
    found: dict[str, str] = {}
    for token in _special_tokens(Path(model.path)):
        match = CODE.fullmatch(token)
        if match:
            found[next(filter(None, match.groups()))] = token
    return found


def marian_codes(model: ModelFiles) -> dict[str, str]:
    """The same of a Marian model with several target languages."""
    vocabulary = _json(Path(model.path) / "vocab.json") or {}
    tokens = vocabulary if isinstance(vocabulary, dict) else {}
    return {match.group(1): token for token in tokens if (match := MARIAN_CODE.fullmatch(token))}


def chosen(key: str, value: str | None, known: dict[str, str], model: ModelFiles) -> str:
    """The token for a code of the job; SpecError where there is none, or none is given."""
    if value is None:
        raise SpecError(
            f"task.{key} is needed: {model.name} knows many languages", f"as {', '.join(sorted(known)[:4])}"
        )
    if value not in known:
        near = nearest(value, list(known)) or next((code for code in sorted(known) if code[:2] == value[:2]), "")
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(sorted(known)[:12])}, ..."
        raise SpecError(f"task.{key}: {model.name} knows no language {value!r}", hint)
    return known[value]


def prefix(model: ModelFiles, source: str | None, target: str | None) -> str:
    """What T5 and its like want before every text: the model's own words for the pair where it has them."""
    params: dict[str, Any] = model.config.get("task_specific_params") or {}
    own = {name: value.get("prefix") for name, value in params.items() if name.startswith("translation_")}
    if source is None and target is None and len(own) == 1:
        return next(iter(own.values())) or ""
    names = [named(key, value) for key, value in (("source_language", source), ("target_language", target))]
    short = {name: code for code, name in NAMES.items()}
    known = own.get("translation_{}_to_{}".format(*(short.get(name, name) for name in names)))
    return known or f"translate {names[0]} to {names[1]}: "


def named(key: str, value: str | None) -> str:
    """The English name of a language, of a name or an ISO 639-1 code; SpecError where it is no language."""
    if value is None:
        raise SpecError(f"task.{key} is needed: the model is told of languages in words", "as English, or en")
    known = {code.lower(): name for code, name in NAMES.items()} | {name.lower(): name for name in NAMES.values()}
    if value.lower() in known:
        return known[value.lower()]
    near = nearest(value.lower(), list(known))
    hint = f"did you mean {near}?" if near else "write its English name"
    if len(value) > 3 and value[:1].isupper() and not near:
        return value  # a language that is not in our list
    raise SpecError(f"task.{key}: {value!r} is no language known here", hint)


def _special_tokens(folder: Path) -> set[str]:
    """Names of the special tokens in a tokenizer's files."""
    found: set[str] = set()
    for entry in (_json(folder / "tokenizer.json") or {}).get("added_tokens") or []:
        found.add(str(entry.get("content")))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        tree = _json(folder / name) or {}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = tree.get(key) or []
            entries = value.values() if isinstance(value, dict) else value
            found.update(str(e.get("content") if isinstance(e, dict) else e) for e in entries)
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
