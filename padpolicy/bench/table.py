"""The results of a benchmark as tables on the terminal."""

from __future__ import annotations

from typing import Any


def show(results: dict[str, Any]) -> None:
    """Prints what `bench` returned."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("measurement", "unit", box=None, pad_edge=False)
    for heading in ("ours", "other", "ratio"):
        table.add_column(heading, justify="right")
    for row in results["rows"]:
        numbers = (f"{row['ours']:.4g}", f"{row['other']:.4g}", f"{row['ratio']:.2f}")
        table.add_row(row["name"], row["unit"], *numbers)
    console.print(table)
    stages = Table("one plan, wall ms", box=None, pad_edge=False)
    for heading in ("p50", "p95"):
        stages.add_column(heading, justify="right")
    for stage, ms in results["latency_ms"].items():
        stages.add_row(stage, f"{ms['p50']:.2f}", f"{ms['p95']:.2f}")
    console.print(stages)
    console.print(
        f"ratio: how many times as fast ours is; medians of {results['repeats']} repeats, {results['clock']}\n"
        f"policy {results['policy']}; commit {results['commit']}; torch {results['torch']}; {results['device']}, "
        f"{results['threads']} thread(s), {results['cpu']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
