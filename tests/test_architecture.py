"""Imports point down only, and heavy libraries stay behind their doors. Read from the source, function-level imports too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "batchnlp"
TIERS = {
    "types": 0, "errors": 0, "failpoints": 0, "registry": 0, "templates": 0, "words": 0, "text": 1, "data": 1,
    "job": 1,
    "tasks": 2, "backends": 2, "sinks": 2, "evaluate": 2, "engine": 3, "schedule": 3, "train": 3, "report": 3, "cli": 4,
}  # fmt: skip
SIBLINGS = {  # one tier, and allowed all the same
    ("schedule", "engine"), ("train", "engine"), ("registry", "errors"), ("registry", "types"), ("registry", "words"),
    ("templates", "errors"),
}  # fmt: skip
DOORS = {  # library → where it may be imported
    "ray": ("engine/ray_runner.py", "engine/ray_cluster.py", "train/ray_workers.py"),
    "torch": ("backends/", "train/"),
    "rensa": ("train/duplicates.py",),
    "peft": ("train/lora.py",),
    "rich": ("cli/", "report/"),
    "click": ("cli/",),
    "httpx2": ("backends/openai_client.py", "engine/hooks.py"),
    "openlineage": ("engine/lineage.py",),
    "vllm": ("backends/vllm_generator.py",),
    "duckdb": ("sinks/duckdb.py",),
    "deltalake": ("sinks/delta.py",),
    "pyiceberg": ("sinks/iceberg.py",),
    "adbc_driver_postgresql": ("sinks/postgres.py",),
    "scipy": ("evaluate/",),
    "sklearn": ("evaluate/",),
    "sacrebleu": ("evaluate/",),
    "rouge_score": ("evaluate/",),
}
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in the file, wherever it stands; `from a import b` is a.b where that is one."""
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            assert node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}" if is_module(node.module, alias.name) else node.module


def is_module(package: str, name: str) -> bool:
    if package.split(".")[0] != "batchnlp":
        return False
    path = ROOT.joinpath(*package.split(".")[1:], name)
    return path.is_dir() or path.with_suffix(".py").is_file()


def package_of(name: str) -> str:
    """The first step below batchnlp: cli for cli/main.py, types for types.py."""
    return name.split("/")[0].removesuffix(".py")


def test_the_source_is_seen() -> None:
    assert "engine/worker.py" in MODULES
    assert (ROOT / "engine" / "worker.py").is_file()
    assert any(module == "torch" for name in MODULES for _, module in imports(name)), "function-level imports count"


@pytest.mark.parametrize("name", [m for m in MODULES if m not in {"__init__.py", "__main__.py"}])
def test_imports_point_down(name: str) -> None:
    mine = package_of(name)
    assert mine in TIERS, f"{mine} has no tier; DESIGN.md says which packages there are"
    for line, module in imports(name):
        head, _, rest = module.partition(".")
        theirs = rest.split(".")[0]
        if head != "batchnlp" or not theirs or theirs == mine:
            continue
        assert theirs in TIERS, f"{name}:{line} imports {module}, which has no tier"
        down = TIERS[theirs] < TIERS[mine]
        assert down or (mine, theirs) in SIBLINGS, f"{name}:{line} imports {module}, which is not below {mine}"


@pytest.mark.parametrize("name", ["types.py", "errors.py"])
def test_the_nouns_and_the_errors_import_nothing_of_ours(name: str) -> None:
    assert not [module for _, module in imports(name) if module.split(".")[0] == "batchnlp"]


@pytest.mark.parametrize("library", DOORS)
def test_libraries_stay_behind_their_doors(library: str) -> None:
    allowed = DOORS[library]
    for name in MODULES:
        for line, module in imports(name):
            if module.split(".")[0] == library:
                assert name.startswith(allowed), f"{name}:{line} imports {library}, which belongs to {allowed}"


def test_the_package_itself_imports_nothing_of_ours_at_once() -> None:
    """`import batchnlp` must stay light: what it offers is imported at first use."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name if isinstance(node, ast.Import) else node.module for node in top for alias in node.names}
    assert modules <= {"__future__", "typing"}


@pytest.mark.parametrize("name", MODULES)
def test_files_are_of_a_size_to_be_read(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 400


def test_what_the_registry_names_is_there() -> None:
    from batchnlp import registry

    tables = (
        registry.TASKS,
        registry.SERVED,
        *registry.BACKENDS.values(),
        registry.RUNNERS,
        registry.SINKS,
        registry.STATEMENTS,
        registry.EXPORTS,
    )
    for table in tables:
        for target in table.values():
            module, _, attribute = target.partition(":")
            path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
            names = {getattr(node, "name", "") for node in ast.parse(path.read_text(encoding="utf-8")).body}
            assert attribute in names, target
