"""From YAML, environment and flags to one JobSpec: flags over `BATCHNLP_*` over the file.

An unknown key is refused with the nearest known one, because a key that is silently ignored costs a night.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from batchnlp import failpoints
from batchnlp.errors import SpecError
from batchnlp.job.dates import parse_date, today, with_dates
from batchnlp.job.section import as_list
from batchnlp.job.sinks import SinkSpec, StatementSpec
from batchnlp.job.spec import RUN_DATE, JobSpec
from batchnlp.job.train import TrainSpec
from batchnlp.words import nearest

ENV_PREFIX = "BATCHNLP_"
ENV_OTHER = {"BATCHNLP_CACHE", "BATCHNLP_LOG", failpoints.VARIABLE}  # variables of ours that are no spec keys
MAX_SPEC_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Safe loading without aliases, of which a few lines can unfold to gigabytes, and without a key that is there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise SpecError("the job uses YAML aliases (*name), which are not allowed", "write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ValueError(f"the key {key.value} is there twice, again in line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names it in errors."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{where} is not valid YAML: {_yaml_problem(error)}") from None


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', error)}"


def load_spec(
    path: str | os.PathLike[str], settings: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> JobSpec:
    """The job in the file at `path`; see `build_spec` for what goes over it."""
    return build_spec(_tree(Path(path), "source, task and output"), settings, flags, str(path))


def load_train(path: str | os.PathLike[str], settings: Iterable[str] = ()) -> TrainSpec:
    """The training in the file at `path`, with `key=value` over it."""
    return build_train(_tree(Path(path), "kind, source and output"), settings, where=str(path))


def _tree(file: Path, keys: str) -> dict[str, Any]:
    try:
        tree = parse_yaml(_text(file), str(file))
    except UnicodeDecodeError:
        raise SpecError(f"{file} is not text in UTF-8", "a job is a short YAML file") from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}", "give the YAML file of a job") from None
    if not isinstance(tree, dict):
        raise SpecError(f"{file} holds no job", f"it needs at least the keys {keys}")
    return tree


def _text(file: Path) -> str:
    if not file.exists():
        beside = nearest(file.name, [p.name for p in file.parent.glob("*.y*ml")]) if file.parent.is_dir() else ""
        raise SpecError(f"no job file {file}", f"did you mean {file.parent / beside}?" if beside else "check the path")
    if file.stat().st_size > MAX_SPEC_BYTES:
        raise SpecError(f"{file} has more than {MAX_SPEC_BYTES:,} bytes", "a job is a short YAML file")
    return file.read_text(encoding="utf-8")


def build_spec(
    tree: Mapping[str, Any],
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    where: str = "the job",
) -> JobSpec:
    """A validated job from a nested mapping; over it go the environment, `flags` (dotted key to value), and `settings`
    (`key=value`, the value in YAML)."""
    merged: dict[str, Any] = _copy(tree)
    given = {dotted: where for dotted in flags or ()}  # what comes from elsewhere than the file, and whence
    for name, dotted, value in _from_environment(os.environ):
        _put(merged, dotted, value)
        given.setdefault(dotted, name)
    for dotted, value in (flags or {}).items():
        _put(merged, dotted, value)
    given |= _put_settings(merged, settings)
    dated = _with_dates(merged, lambda key: _origin(key, given, where))
    try:
        return JobSpec.model_validate(dated)
    except ValidationError as error:
        raise _explain(error, where, given, JobSpec) from None


def build_train(
    tree: Mapping[str, Any],
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    where: str = "the training",
) -> TrainSpec:
    """A validated training from a nested mapping; over it go `flags` and `settings`, as for a job."""
    merged: dict[str, Any] = _copy(tree)
    given = dict.fromkeys(flags or {}, where)
    for dotted, value in (flags or {}).items():
        _put(merged, dotted, value)
    given |= _put_settings(merged, settings)
    try:
        return TrainSpec.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, where, given, TrainSpec) from None


def _with_dates(tree: dict[str, Any], origin: Callable[[str], str]) -> dict[str, Any]:
    """The job with the run's date in it, where it asks for one."""
    given, schedule, output = tree.get("date"), tree.get("schedule"), tree.get("output")
    zone = schedule.get("timezone", "UTC") if isinstance(schedule, dict) else None
    day = today(zone) if given is None else parse_date(given, f"{origin('date')}: date")
    filled, dated = with_dates(tree, day, origin)
    partitions = output.get("partition_by") if isinstance(output, dict) else None
    dated = dated or given is not None or RUN_DATE in (as_list(partitions) or ())
    return {**filled, "date": day} if dated else filled


def _origin(key: str, given: Mapping[str, str], where: str) -> str:
    """Whence the value of a key comes: a flag, a variable, the file."""
    return next((given[k] for k in (key, key.split(".")[0]) if k in given), where)


def build_target(kind: str, settings: Iterable[str]) -> SinkSpec | StatementSpec:
    """Where `batchnlp load` is to load to: a section of the job, made from flags alone."""
    tree: dict[str, Any] = {"kind": kind}
    given = _put_settings(tree, settings)
    statement = kind in get_args(StatementSpec.model_fields["kind"].annotation)
    model: type[SinkSpec | StatementSpec] = StatementSpec if statement else SinkSpec
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, "the command line", given, model) from None


def _put_settings(tree: dict[str, Any], settings: Iterable[str]) -> dict[str, str]:
    """Put `key=value` into the tree; where each of the keys comes from."""
    given = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            missing = "key" if separator else "'='"
            raise SpecError(f"--set {setting} has no {missing}", "write --set engine.dtype=float32")
        _put(tree, key.strip(), parse_yaml(value, f"--set {key}"))
        given[key.strip()] = "--set"
    return given


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    for key in tree:
        if not isinstance(key, str):
            raise SpecError(
                f"the key {key!r} of the job is not text", "put it in quotes; yes, no, on, off are booleans"
            )
    return {k: _copy(v) if isinstance(v, Mapping) and k != "labels" else v for k, v in tree.items()}


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SpecError(f"{dotted} cannot be set: {section} is no section")
        tree = inner
    tree[key] = value


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """(variable, key, value): `BATCHNLP_ENGINE__DTYPE=float32` is `engine.dtype`; `BATCHNLP_JOB` is `job`."""
    found = []
    for name in sorted(n for n in environ if n.startswith(ENV_PREFIX) and n not in ENV_OTHER):
        dotted = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        known = known_keys()
        if dotted not in known:
            near = nearest(dotted, known)
            hint = f"did you mean {ENV_PREFIX}{near.upper().replace('.', '__')}?" if near else "unset it"
            raise SpecError(f"the environment variable {name} is no setting", hint)
        found.append((name, dotted, parse_yaml(environ[name], name)))
    return found


def known_keys() -> list[str]:
    """Every key of a job, dotted."""
    return _keys(JobSpec)


def _keys(model: type[BaseModel]) -> list[str]:
    return [key for name, field in model.model_fields.items() for key in _keys_of(name, field.annotation)]


def _keys_of(name: str, annotation: Any) -> list[str]:
    section = None if get_origin(annotation) in (list, dict) else _section(annotation)
    return [name] if section is None else [f"{name}.{inner}" for inner in section.model_fields]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key is, may be, or holds several of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section(inner))), None)


def _section_at(key: str, model: type[BaseModel]) -> type[BaseModel] | None:
    field = model.model_fields.get(key)
    return None if field is None else _section(field.annotation)


def _place(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The key an error is about. What follows it in pydantic's path are members of unions and positions in lists."""
    names = [str(part) for part in loc if isinstance(part, str)]
    depth = 3 if names[:1] == ["gates"] else 2  # gates have names of the user's choice
    return ".".join(names[: depth if names and _section_at(names[0], model) else 1])


def _explain(error: ValidationError, where: str, given: Mapping[str, str], model: type[BaseModel]) -> SpecError:
    """The first thing wrong, in one line; further ones are counted. `given` tells where single keys come from."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] == "missing")  # a misspelt key explains it
    first = problems[0]
    places = [_place(problem["loc"], model) for problem in problems]
    key, others = places[0], len(set(places)) - 1
    more = f"; and {others} more" if others else ""
    message = first["msg"].removeprefix("Value error, ")
    named = message.partition(" ")[0].rstrip(":")  # the key, where a whole section is judged
    where = given[named] if named in given else _origin(key, given, where)
    if first["type"] == "extra_forbidden":
        keys = _inner(model, key)
        sections = sorted({k.split(".")[0] for k in keys})
        near = nearest(key, keys + sections) or next((k for k in keys if k.endswith("." + key.split(".")[-1])), "")
        schema = "jobs/train-schema.json" if model is TrainSpec else "jobs/schema.json"
        return SpecError(f"{where}: unknown key {key}{more}", f"did you mean {near}?" if near else f"see {schema}")
    if first["type"] == "missing":
        return SpecError(f"{where}: {key} is missing{more}", f"add {key}, or --set {key}=...")
    if not key or message.startswith(key) or first["type"] == "value_error":  # our own say what they found
        return SpecError(f"{where}: {message}{more}")
    if first["type"] == "model_type":
        keys = [known for known in _inner(model, f"{key}.") if known.startswith(f"{key}.")]
        return SpecError(
            f"{where}: {key} is a section, not {first['input']!r}"[:500] + more, f"its keys: {', '.join(keys)}"
        )
    return SpecError(f"{where}: {key}: {message}, not {first['input']!r}"[:500] + more, _hint(key, first, model))


def _inner(model: type[BaseModel], key: str) -> list[str]:
    """The keys that may be meant by an unknown one."""
    name = key.partition(".")[0]
    section, keys = _section_at(name, model), _keys(model)
    if name == "gates" and section:
        return [f"{key.rpartition('.')[0]}.{inner}" for inner in section.model_fields]
    return [f"{name}.{inner}" for inner in section.model_fields] if section and name in keys else keys


def _hint(key: str, problem: Any, model: type[BaseModel]) -> str:
    """The nearest of the words that may stand there, else what the schema says of the key."""
    words = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    if near := nearest(str(problem["input"]), words):
        return f"did you mean {near}?"
    section, _, name = key.partition(".")
    inner = _section_at(section, model)
    field = inner.model_fields.get(name.rpartition(".")[2]) if inner else None
    field = field or model.model_fields[section]
    return str(field.description or "").rstrip(".")
