"""The command ``python -m benchmarks``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from benchmarks import matmul, nanogpt, step_time, throughput

BENCHMARKS: dict[str, Any] = {
    "step_time": step_time,
    "matmul": matmul,
    "throughput": throughput,
    "nanogpt": nanogpt,
}

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(BENCHMARKS)}; default: all.")
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option("--width", "-w", help="May be repeated; default: all.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed turns; default 5.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Widths 64 and 128, two turns.")] = False,
) -> None:
    """Measure and print Markdown tables; nothing fails for being slow.

    Leave the machine alone meanwhile: what is compared is timed in turn, so other work blurs the
    ratios less than the times, but it does blur them.
    """
    unknown = sorted(set(names or []) - set(BENCHMARKS))
    if unknown:
        typer.echo(f"unknown benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}", err=True)
        raise typer.Exit(2)
    widths = width or ([64, 128] if quick else [])
    for name in names or BENCHMARKS:
        typer.echo(f"\n## {name}\n")
        if name == "nanogpt" and not nanogpt.available():
            typer.echo("skipped, as torch is not installed (it is the extra `benchmark`)")
            continue
        benchmark = BENCHMARKS[name]
        frame = benchmark.measure(widths or benchmark.WIDTHS, rounds or (2 if quick else 5))
        typer.echo(benchmark.table(frame))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
