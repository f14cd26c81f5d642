"""Text generation by vLLM, in this process: token ids in, completions out, its scheduler fed over the borders of shards.

vLLM batches, caches and shares beginnings by itself. Decoder-only models; beams it has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from batchnlp.backends.base import Aborted, Backend, One
from batchnlp.backends.generation import Job
from batchnlp.backends.model_files import NO_LIMIT
from batchnlp.backends.torch_model import give_up
from batchnlp.errors import MissingExtraError, ModelError, UsageError, WorkerLostError
from batchnlp.types import Completions, Decoding, Feed, ModelFiles, Pieces, Resolved

AHEAD = 512  # requests that vLLM knows of: those it computes, and enough more that it never has to wait
GRAMMAR = {"backend": "guidance", "disable_any_whitespace": True}  # else a model may write white space without end


class VllmGenerator(Backend):
    """One engine on one device."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
    ) -> None:
        super().__init__()
        self._vllm, self._decoding, self.note = _library(resolved.device), decoding or Decoding(), ""
        self._positions = model.max_length
        self._engine = self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(
            model=model.path, dtype=resolved.dtype, load_format="safetensors", trust_remote_code=False,
            max_model_len=model.max_length if model.max_length < NO_LIMIT else None,
            structured_outputs_config=GRAMMAR, disable_log_stats=True,
        ))  # fmt: skip
        self._sampling = _sampling(self._vllm, self._engine.model_config, self._decoding, model.name)
        self._worked = False
        self._asked: dict[str, tuple[Job, int]] = {}  # id of a request → job and piece
        self._count = 0

    def forward(self, pieces: Pieces) -> Completions:
        """The answers to the pieces of one shard."""
        return next(iter(self.run(One(pieces))))[1]

    def run(self, feed: Feed) -> Iterator[tuple[Any, Completions]]:
        """(key, answers) of each shard, in the order they get done."""
        jobs: list[Job] = []
        try:
            while jobs or not feed.ended:
                if self.aborted():
                    raise Aborted
                self._fill(jobs, feed)
                if self._asked:
                    self._step()
                for job in [job for job in jobs if not job.left]:
                    jobs.remove(job)
                    yield job.key, job.result()
        finally:
            if self._asked:
                self._engine.abort_request(list(self._asked))
                self._asked.clear()

    def _fill(self, jobs: list[Job], feed: Feed) -> None:
        """Ask for as much as vLLM shall know of, and take the next shard when all of the last one is asked for."""
        if not any(job.pending for job in jobs) and len(self._asked) < AHEAD:
            work = feed.take(wait=not jobs)
            if work is not None:
                jobs.append(self._job(*work))
        for job in jobs:
            while job.pending and len(self._asked) < AHEAD:
                self._ask(job, job.pending.pop())

    def _job(self, key: Any, pieces: Pieces) -> Job:
        asked = self._decoding.max_new_tokens if pieces.max_new is None else pieces.max_new.astype(np.int64)
        limits = np.minimum(np.minimum(asked, self._decoding.max_new_tokens), self._positions - pieces.lengths)
        return Job.of(key, pieces, limits, alike=not self._decoding.sample, prefix=False)

    def _ask(self, job: Job, piece: int) -> None:
        params = self._sampling.clone()
        params.max_tokens = int(job.limits[piece])
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        if job.pieces.seed is not None:
            params.seed = int(job.pieces.seed[piece])
        self._count += 1
        name = str(self._count)
        prompt = {"type": "token", "prompt_token_ids": job.prompt(piece)}
        try:
            self._engine.add_request(name, prompt, params)
        except Exception as error:  # noqa: BLE001 - whatever vLLM has against a prompt, it is about this document
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            job.fail(piece, "forward_error", message)
            give_up(len(job.failures), self._worked, error, message)
        else:
            self._asked[name] = job, piece

    def _step(self) -> None:
        """Compute one step, and take the answers that it ends."""
        began, first = perf_counter(), next(iter(self._asked.values()))[0]
        try:
            ended = [output for output in self._engine.step() if output.finished]
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise WorkerLostError(f"vLLM has failed, and does nothing any more: {message}", "") from error
        rows = tokens = 0
        seconds = perf_counter() - began
        first.seconds += seconds
        for output in ended:
            job, piece = self._asked.pop(output.request_id)
            rows += 1 + len(job.twins.get(piece, ()))
            tokens += self._settle(job, piece, output.outputs[0])
        self._worked = True
        self.on_batch(rows, tokens, tokens, seconds)

    def _settle(self, job: Job, piece: int, output: Any) -> int:
        """Take an answer; the tokens computed for it."""
        ids = list(output.token_ids)
        finish = "length" if output.finish_reason == "length" else "stop"
        logprobs = [entry[token].logprob for entry, token in zip(output.logprobs or (), ids, strict=False)]
        by_string = isinstance(output.stop_reason, str)  # which the task cuts off; an end token is no part of an answer
        if finish == "stop" and ids and not by_string:
            ids, logprobs = ids[:-1], logprobs[:-1]
        job.answer(piece, ids, finish, logprobs)
        tokens = int(job.pieces.lengths[piece]) + len(output.token_ids)
        job.tokens += tokens
        return tokens


def _library(device: str) -> Any:
    """vLLM, once it is told not to start processes of its own, and to report nothing over the network."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError:
        raise MissingExtraError.of("vllm", "vllm") from None
    if current_platform.device_type != device.partition(":")[0]:
        what = f"this build of vLLM computes on {current_platform.device_type}, and engine.device is {device}"
        raise UsageError(what, "use engine.backend=torch, or another build")
    return vllm


def _sampling(vllm: Any, config: Any, decoding: Decoding, name: str) -> Any:
    """What all requests have in common: the job's wishes over the model's own."""
    own = config.try_get_generation_config()
    asked = {
        "num_beams": decoding.num_beams or own.get("num_beams"),
        "no_repeat_ngram_size": own.get("no_repeat_ngram_size"),
    }
    if unknown := [key for key, value in asked.items() if (value or 1) > 1]:
        raise ModelError(f"vLLM has no {unknown[0]}, which {name} is to be run with", "use engine.backend=torch")
    wishes: dict[str, Any] = {"repetition_penalty": decoding.repetition_penalty or own.get("repetition_penalty")}
    if decoding.sample:
        wishes |= {key: getattr(decoding, key) or own.get(key) for key in ("temperature", "top_k", "top_p")}
        wishes["min_p"] = own.get("min_p")
    else:
        wishes["temperature"] = 0.0
    schema = decoding.json_schema
    if schema is not None:
        wishes["structured_outputs"] = vllm.sampling_params.StructuredOutputsParams(json=schema)
    return vllm.SamplingParams(
        stop=list(decoding.stop) or None, min_tokens=decoding.min_new_tokens, logprobs=0 if decoding.logprobs else None,
        detokenize=bool(decoding.stop), output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        **{key: value for key, value in wishes.items() if value is not None},
    )  # fmt: skip
