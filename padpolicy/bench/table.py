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
        f"policy {results['policy']}; {_machine(results)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def show_latency(results: dict[str, Any]) -> None:
    """Prints what `latency` returned."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = ["p50 ms", "p95", "p99"] + ["PAD's / this"] * ("times_as_fast_as_pad" in results["settings"][0])
    columns += ["floor ms", "network / floor"] * ("floor_ms" in results["settings"][0])
    table = Table("settings", "stage", box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results["settings"]:
        for stage, ms in row["ms"].items():
            if stage == "context" and not row["keep"]:
                continue
            cells = [f"{ms[quantile]:.2f}" for quantile in ("p50", "p95", "p99")]
            if stage == "total":
                ratios = {"times_as_fast_as_pad": ".1f", "floor_ms": ".3f", "times_floor": ".1f"}
                cells += [format(row[name], digits) for name, digits in ratios.items() if name in row]
            what = {"step": "each step" if row["keep"] else "each, with context", "wall": "total, wall"}.get(
                stage, stage
            )
            table.add_row(row["name"] if stage == "encode" else "", what, *cells)
    console.print(table)
    console.print(
        f"{results['plans']} plans of each, taking turns; {results['clock']}, and the wall time of a whole plan; "
        f"compiled: {'yes' if results['compile'] else 'no'}; seed {results['seed']}\n"
        f"policy {results['policy']}; {_machine(results)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _machine(results: dict[str, Any]) -> str:
    return (
        f"commit {results['commit']}; torch {results['torch']}; {results['device']}, {results['threads']} thread(s), "
        f"{results['cpu']}"
    )
