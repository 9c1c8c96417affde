"""The command ``python -m benchmarks``."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks import matmul, nanogpt, step_time, throughput

NAMES = ("step_time", "matmul", "throughput", "nanogpt")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(NAMES)}; default: all.")
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
    chosen = names or list(NAMES)
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        typer.echo(f"unknown benchmark {unknown[0]!r}; known: {', '.join(NAMES)}", err=True)
        raise typer.Exit(2)
    turns = rounds or (2 if quick else 5)
    widths = width or ([64, 128] if quick else None)
    for name in chosen:
        typer.echo(f"\n## {name}\n")
        typer.echo(_measured(name, widths, turns, small=quick and not width))


def _measured(name: str, widths: list[int] | None, turns: int, small: bool) -> str:
    if name == "step_time":
        cases = step_time.cases_at(widths) if widths else step_time.CASES
        return step_time.table(step_time.measure(step_time.QUICK if small else cases, turns))
    if name == "matmul":
        return matmul.table(matmul.measure(widths or matmul.WIDTHS, turns))
    if name == "throughput":
        return throughput.table(throughput.measure(widths or throughput.WIDTHS, turns))
    if not nanogpt.available():
        return nanogpt.MISSING
    return nanogpt.table(nanogpt.measure(widths or nanogpt.WIDTHS, turns))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
