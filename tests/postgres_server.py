"""A PostgreSQL server of the tests' own, in a temporary directory, reached through a socket in it."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def binaries() -> Path | None:
    """Where initdb and pg_ctl are: on the path, where Debian puts them, or in the package pgserver."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec("pgserver")
    if package is not None and package.submodule_search_locations:
        found.append(Path(package.submodule_search_locations[0]) / "pginstall" / "bin")
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


def somebody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: the arguments that make a child somebody else."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def server(programs: Path) -> Iterator[str]:
    """The URI of an empty database."""
    folder, other = tempfile.mkdtemp(prefix="batchnlp-pg-"), somebody()
    if other:
        os.chown(folder, other["user"], other["group"])
    data, log = f"{folder}/data", f"{folder}/log"
    environ = {**os.environ, "LC_ALL": "C"}

    def call(program: str, *args: str) -> None:
        command = [str(programs / program), "-D", data, *args]
        done = subprocess.run(
            command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, **other,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    try:
        call("initdb", "--username=tests", "--auth=trust", "--encoding=UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_wal_size=1GB"
        call("pg_ctl", "start", "-w", "-s", "-l", log, "-o", options)
        try:
            yield f"postgresql://tests@/postgres?host={folder}"
        finally:
            call("pg_ctl", "stop", "-m", "immediate", "-s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
