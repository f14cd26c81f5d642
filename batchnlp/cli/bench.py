"""The body of `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from batchnlp.cli.show import message, print_json, print_table
from batchnlp.engine.bench import bench
from batchnlp.engine.planner import prepare
from batchnlp.job.load import load_spec


def show_bench(path: str, settings: Sequence[str], any_dtype: bool, as_json: bool) -> None:
    """Measure, and say what to put into the job."""
    found = bench(prepare(load_spec(path, settings)), any_dtype=any_dtype, tell=message)
    if as_json:
        print_json({"status": "done", **asdict(found)})
        return
    rows = [
        ("throughput", f"{found.docs_per_second:,.1f} docs/s, {found.tokens_per_second:,.0f} real tokens/s"),
        ("padding", f"{found.padding:.1%}"),
        ("device busy", f"{found.device_busy:.0%}"),
        (
            "limit",
            f"{found.limit:,.1f} docs/s: forward alone {found.forward:,.1f}, tokenizer alone {found.tokenizer:,.1f}",
        ),
        ("share of the limit", f"{found.share_of_limit:.0%}"),
        ("measured on", f"{found.sampled:,} documents"),
    ]
    print_table("", ("", ""), rows)
    print_table(
        "\nfor the job", ("",), [("engine:",), *((f"  {key}: {value}",) for key, value in found.settings.items())]
    )
