"""What is planned, what is done, and what that proves. One writer: the driver.

    OUT/_batchnlp/current.json                      the fingerprints whose results are live
    OUT/_batchnlp/<fingerprint>/plan.json           created once: the shards, and what every `auto` became
                               /staging/<shard>.<attempt>/   what workers write, swept when it does not count
                               /repeats.parquet      rows whose id is there before them, found with the plan
                               /commits/<shard>.json         created exclusively: this makes an attempt count
                               /segments/<first>.jsonl       whole ranges of commits, compacted when a run is resumed
                               /dead/, /order/               dead letters, row order of partitioned parts
                               /gone.parquet, /deletes.json  of an incremental run: ids that are no more, their published file
                               /manifest.json                the sums, all files with size and checksum
                               /commits/r<g>-<shard>.json    of the g-th retry: its dead letters, tried again
                               /manifest-<g>.json, /resolved/   what a later retry has replaced
    OUT/_batchnlp/state/<recipe8>/                  what incremental runs know of the rows of their corpus
    OUT/part-<shard>-<fp8>.parquet                  published: links to the committed files
    OUT/_SUCCESS                                    last

A crash between any two of these steps leaves a state from which the same command goes on.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from typing import Any

import pyarrow as pa

from batchnlp import failpoints
from batchnlp.data import manifests
from batchnlp.data.commits import Commits, Segments, Tally, merged
from batchnlp.data.control import damaged, read_tree
from batchnlp.data.deletes import deletes
from batchnlp.data.parts import part_from_json, shard_name, staging_folder, write_parquet
from batchnlp.data.store import CONTROL, LocalStore, Store, open_store, sha256_of, to_json
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import InputFile, Part, PartFile, Plan, Resolved, Segment, Shard

FORMAT = 1
CURRENT = f"{CONTROL}/current.json"
SUCCESS = "_SUCCESS"
FOLDERS = ("commits", "segments", "staging")  # of shards that are done or under way


class Ledger:
    """The control directory of one run; of a retry that is under way, its commits alone."""

    def __init__(self, store: Store, fingerprint: str, generation: int = 0) -> None:
        self.store, self.fingerprint, self.generation = store, fingerprint, generation
        self.control = f"_batchnlp/{fingerprint}"
        self._segments = Segments(store, self.control)
        self._retries: int | None = None

    @property
    def run(self) -> str:
        """The run's name: stable over resumes."""
        name = self.fingerprint[:8]
        return f"{name}-r{self.generation}" if self.generation else name

    @property
    def retries(self) -> int:
        """How often its dead letters were tried again, as its manifest says; without one, those that were replaced."""
        if self._retries is None:
            outcome = None
            with suppress(CorruptError):
                outcome = self.outcome()
            if outcome is not None:
                found = re.search(r"-r(\d+)$", str(outcome.get("run")))
                self._retries = int(found[1]) if found else 0
            else:
                kept = (re.fullmatch(r"manifest-(\d+)\.json", name) for name in self.store.names(self.control))
                self._retries = max((int(name[1]) + 1 for name in kept if name), default=0)
        return self._retries

    @property
    def repeats(self) -> str:
        """The file with the rows whose id is there before them, if there are any."""
        return f"{self.control}/repeats.parquet"

    # --- the plan

    def create_plan(
        self, plan: Plan, facts: dict[str, Any], resolved: Resolved, about: dict[str, Any],
        repeats: pa.Table | None = None,
    ) -> None:  # fmt: skip
        """Fix the plan; of two drivers one wins, and both go on with the winner's. `repeats`: the same for all of them."""
        if repeats is not None and len(repeats):
            with self.store.writing(self.repeats) as path:
                write_parquet(repeats, path)
        schema = base64.b64encode(plan.schema.serialize().to_pybytes()).decode()
        tree = {
            "format": FORMAT, "fingerprint": plan.fingerprint, "facts": facts, "resolved": asdict(resolved),
            "files": [asdict(f) for f in plan.files], "schema": schema, "rows": plan.rows, "repeats": plan.repeats,
            "shards": [[astuple(s) for s in shard.segments] for shard in plan.shards], **about,
        }  # fmt: skip
        self.store.create(f"{self.control}/plan.json", json.dumps(tree).encode())

    def plan_tree(self) -> dict[str, Any] | None:
        """plan.json as it is, or None when the run has not begun."""
        return read_tree(self.store, f"{self.control}/plan.json", self._afresh())

    def _afresh(self) -> str:
        return f"remove {self.store.path(self.control)} and run the job again; it begins anew"

    def plan(self) -> tuple[Plan, Resolved]:
        """The fixed plan."""
        tree = self.plan_tree()
        if tree is None:
            raise OutputError(f"{self.store.root} has no plan for run {self.run}", "run the job first")
        with damaged(self.store.path(f"{self.control}/plan.json"), self._afresh()):
            if tree["format"] != FORMAT:
                what = f"{self.store.root} was written by another version of batchnlp"
                raise OutputError(what, "use a new output.path")
            files = tuple(_input_file(f) for f in tree["files"])
            shards = tuple(Shard(i, tuple(Segment(*s) for s in row)) for i, row in enumerate(tree["shards"]))
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(tree["schema"])))
            plan = Plan(tree["fingerprint"], files, shards, schema, repeats=tree.get("repeats", 0))
            return plan, Resolved(**tree["resolved"])

    # --- commits

    def commits(self) -> Commits:
        """Every committed part, by shard; read when it is asked for."""
        return Commits(self.committed, [*self._segments.shards(), *self._loose()])

    def committed_shards(self) -> list[int]:
        """The shards that are committed."""
        return list(self.commits())

    def _loose(self) -> list[int]:
        """The shards whose commit is a file of its own."""
        head = shard_name(0, self.generation).removesuffix("00000")
        names = (name.removesuffix(".json") for name in self.store.names(f"{self.control}/commits"))
        mine = (name.removeprefix(head) for name in names if name.startswith(head))
        return [int(name) for name in mine if name.isdecimal()]

    def committed(self, shard: int) -> Part:
        """The part that counts for a shard which is committed."""
        part = self.find(shard)
        if part is None:
            raise CorruptError(f"{self.store.path(self._commit_name(shard))} is gone", "run the job again")
        return part

    def _compacted(self, shard: int) -> Part | None:
        """The part in a segment; retries are few, and stay in files of their own."""
        data = None if self.generation else self._segments.find(shard)
        if data is None:
            return None
        path = self._segments.path(shard)
        with damaged(path, "remove it and run the job again; its shards are computed anew"):
            return part_from_json(json.loads(data))

    def find(self, shard: int) -> Part | None:
        """The part that counts for a shard, with all its retries, or None when it is not committed."""
        part = self._find(shard)
        if part is None or self.generation or not self.retries:
            return part
        layers = [part]
        for generation in range(1, self.retries + 1):
            again = Ledger(self.store, self.fingerprint, generation)._find(shard)
            if again is not None and again.after == layers[-1].attempt:
                layers.append(again)
        return merged(layers)

    def _find(self, shard: int) -> Part | None:
        if (part := self._compacted(shard)) is not None:
            return part
        name, hint = self._commit_name(shard), "remove it and run the job again; the shard is computed anew"
        tree = read_tree(self.store, name, hint)
        if tree is None:
            return self._compacted(shard)  # which may have happened just now
        with damaged(self.store.path(name), hint):
            return part_from_json(tree)

    def _commit_name(self, shard: int) -> str:
        return f"{self.control}/commits/{shard_name(shard, self.generation)}.json"

    def commit(self, part: Part, shard: Shard, invocation: str) -> bool:
        """Make the part count and publish it; False when another attempt of the shard was first.

        Raises CorruptError where the part breaks the row contract or is not on disk as it says.
        """
        if part.rows != shard.rows or part.ok + part.dead != part.rows:
            found = f"{shard.rows} rows, its part {part.ok} results and {part.dead} dead letters"
            hint = "this is a fault of batchnlp; the shard was not committed"
            raise CorruptError(f"shard {shard.index} has {found}", hint)
        folder = self._staging(part)
        failpoints.reach("commit")
        first = self.find(part.shard) is None and self._create_commit(part, folder, invocation)
        failpoints.reach("committed")
        self.publish(part if first else self.committed(part.shard))  # its own driver may have died before it did that
        failpoints.reach("published")
        self.store.remove(folder)
        return first

    def _create_commit(self, part: Part, folder: str, invocation: str) -> bool:
        for file in part.files:
            staged = f"{folder}/{file.name}"
            if self.store.size(staged) != file.size:
                hint = "do all replicas see the same output directory?"
                raise CorruptError(f"{self.store.path(staged)} is not there as written", hint)
        name = self._commit_name(part.shard)
        made = replace(part, invocation=invocation, committed=time.time())
        if not self.store.create(name, to_json(asdict(made))):
            return False
        if self._compacted(part.shard) is None:
            return True
        self.store.remove(name)  # the name was free because another driver has compacted the first commit
        return False

    def _staging(self, part: Part) -> str:
        return staging_folder(self.control, part.shard, part.attempt, self.generation)

    def publish(self, part: Part) -> None:
        """Link the committed files to where readers look. Idempotent."""
        folder = self._staging(part)
        for file in part.files:
            staged = f"{folder}/{file.name}"
            if self.store.size(staged) is None and not self.damage(file):
                continue
            try:
                self.store.publish(staged, file.name)
            except FileNotFoundError:  # swept, by another driver perhaps, as it is once the file is published
                if damage := self.damage(file):
                    raise CorruptError(f"{self.store.path(file.name)} {damage}", self.redo_hint(part.shard)) from None

    def damage(self, file: PartFile) -> str:
        """What a look at a published file's name and size finds wrong with it."""
        size = self.store.size(file.name)
        if size is None:
            return "was committed and is gone"
        return "" if size == file.size else f"has {size:,} bytes instead of {file.size:,}"

    def redo_hint(self, shard: int) -> str:
        """How a user has a committed shard computed again."""
        if self._segments.find(shard) is not None:
            what = f"its {self._segments.size:,} shards are computed anew"
            return f"remove {self._segments.path(shard)} and run the job again; {what}"
        return f"remove {self.store.path(self._commit_name(shard))} and run the job again; the shard is computed anew"

    def recover(self, shards: Iterable[Shard], invocation: str, total: Tally | None = None) -> Commits:
        """After a crash: publish all commits again, adopt finished attempts that have none, sweep the rest; what is done
        is added to `total`."""
        with self.store.snapshot():
            return self._recover({shard.index: shard for shard in shards}, invocation, total or Tally())

    def _recover(self, by_index: Mapping[int, Shard], invocation: str, total: Tally) -> Commits:
        if not self.generation:
            self._segments.compact(self._loose(), self._commit_name)
        done = self.commits()
        for part in done.values():
            if part.shard not in by_index or part.rows != by_index[part.shard].rows:
                hint = f"remove {self.store.path(self.control)} and run the job again"
                raise CorruptError(f"the commit of shard {part.shard} belongs to another plan", hint)
            self.publish(part)
            total.add(part)
        for name in self.store.names(f"{self.control}/staging"):
            found = self._finished(name)
            if found is not None and found.shard in by_index and found.shard not in done:
                first = self.commit(found, by_index[found.shard], invocation)
                total.add(found if first else self.committed(found.shard))
                done.add(found.shard)
            else:
                self.store.remove(f"{self.control}/staging/{name}")
        return done

    def _finished(self, name: str) -> Part | None:
        """The part in a staging folder, if it was finished and its files are whole."""
        folder = f"{self.control}/staging/{name}"
        data = self.store.read(f"{folder}/part.json")
        try:
            part = part_from_json(json.loads(data)) if data else None
        except (ValueError, KeyError, TypeError):
            return None
        if part is None or name != f"{shard_name(part.shard, self.generation)}.{part.attempt}":
            return None
        try:
            return part if all(self._sha256(f"{folder}/{f.name}") == f.sha256 for f in part.files) else None
        except OSError:
            return None

    def _sha256(self, name: str) -> str:
        with self.store.open(name) as handle:
            return sha256_of(handle)

    # --- the end

    def finish(self, parts: Mapping[int, Part], about: dict[str, Any], *, success: bool) -> None:
        """Write the manifest, in the order of the shards. It can be written again; `_SUCCESS` follows in `settle`."""
        total = Tally()
        with self.store.snapshot(), manifests.Writer(self.store, f"{self.control}/manifest.json") as manifest:
            for part in parts.values():
                self.publish(part)
                total.add(part)
                manifest.add({**asdict(file), "shard": part.shard} for file in part.files)
            manifest.add({**asdict(file), "shard": None} for file in deletes(self))
            if not success and self.fingerprint in live(self.store):
                self.store.remove(SUCCESS)  # before the manifest says otherwise
            failpoints.reach("manifest")
            sums_ = total.sums()
            run = f"{self.run}-r{self.retries}" if self.retries else self.run
            manifest.close({"run": run, "fingerprint": self.fingerprint, **about, **sums_, "success": success})
        for name in ("staging", "spool", "suspects"):
            self.store.remove(f"{self.control}/{name}")

    def adopt(self, generation: int) -> None:
        """From now on the commits of that retry count too; the manifest of before is kept under another name."""
        manifest, kept = f"{self.control}/manifest.json", f"{self.control}/manifest-{generation - 1}.json"
        if self.store.size(manifest) is not None:
            self.store.publish(manifest, kept)
        self._retries = generation

    def reopen(self) -> None:
        """A run of which something is computed again is not complete, whatever it was before."""
        if self.fingerprint in live(self.store):
            self.store.remove(SUCCESS)
        self.store.remove(f"{self.control}/manifest.json")

    def manifest(self, name: str = "") -> dict[str, Any] | None:
        """manifest.json (or an older one of that name), or None while the run is not complete."""
        name = name or f"{self.control}/manifest.json"
        with damaged(self.store.path(name), "run the job again; it is written anew"):
            return manifests.read(self.store, name)

    def outcome(self) -> dict[str, Any] | None:
        """The manifest without its list of files, which may be long."""
        name = f"{self.control}/manifest.json"
        with damaged(self.store.path(name), "run the job again; it is written anew"):
            return manifests.head(self.store, name)

    def succeeded(self) -> dict[str, Any] | None:
        """The outcome of a run that is complete and within its limit; a damaged manifest does not say so."""
        with suppress(CorruptError):
            found = self.outcome()
            return found if found is not None and found["success"] else None
        return None

    def complete(self) -> bool:
        """Whether there is a manifest, be it damaged."""
        return self.store.size(f"{self.control}/manifest.json") is not None

    def begun(self) -> bool:
        """Whether there is more than a plan: a shard, or work on one."""
        return self.complete() or any(self.store.names(f"{self.control}/{name}") for name in FOLDERS)


def live(store: Store) -> list[str]:
    """The fingerprints whose results stand in this output, oldest first."""
    hint = 'write {"live": [...]} into it, with those folders beside it whose results are to stand'
    tree = read_tree(store, CURRENT, hint)
    with damaged(store.path(CURRENT), hint):
        return list(tree["live"]) if tree else []


def set_live(store: Store, fingerprints: list[str]) -> None:
    """Swap the list of live fingerprints."""
    store.replace(CURRENT, to_json({"live": fingerprints}))


def settle(store: Store) -> None:
    """`_SUCCESS` is there if and only if every live run is complete and within its limit."""
    names = live(store)
    complete = [found for name in names if (found := Ledger(store, name).succeeded())]
    if not names or len(complete) < len(names):
        store.remove(SUCCESS)
        return
    tree = {"runs": [name[:8] for name in names], **{key: sum(m[key] for m in complete) for key in ("rows", "dead")}}
    if store.read(SUCCESS) != to_json(tree):
        failpoints.reach("success")
        store.replace(SUCCESS, to_json(tree))


def fingerprints(store: Store) -> list[str]:
    """Every fingerprint that has a control directory here, live or not."""
    return [name for name in store.names("_batchnlp") if len(name) == 64]


def open_ledgers(root: str | Store) -> list[Ledger]:
    """The live runs of an output, or OutputError where there is none."""
    store = open_store(root) if isinstance(root, str) else root
    found = [Ledger(store, fingerprint) for fingerprint in live(store)]
    if not found:
        missing = isinstance(store, LocalStore) and not os.path.isdir(store.root)
        what = "is no directory" if missing else "holds no run of batchnlp"
        raise OutputError(f"{root if isinstance(root, str) else root.root} {what}", "give the output.path of a job")
    return found


def _input_file(tree: dict[str, Any]) -> InputFile:
    return InputFile(**{**tree, "partitions": tuple((key, value) for key, value in tree["partitions"])})
