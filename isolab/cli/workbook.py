"""Reruns of notebooks by papermill: the executed notebook, its HTML page and its verdicts.

A chapter is a notebook with one cell tagged ``parameters`` whose first parameter is ``preset``. It
runs with its own folder as the working directory, as it does in JupyterLab, on the kernel of the
Python that runs this module.
"""

from __future__ import annotations

import ast
import functools
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from isolab.cli.options import one_line_errors, pairs

# By preset: seconds that one cell may take, far beyond its budget, so that only a hang meets it.
TIMEOUTS = {"smoke": 600, "laptop": 3600, "full": 48 * 3600}
AUTOSAVE = 5  # seconds between saves, so that an interrupted run leaves its outputs behind


@one_line_errors("isolab workbook")
def workbook(
    notebooks: Annotated[
        list[Path] | None,
        typer.Argument(help="Default: the numbered ones in notebooks/, in order, and your_model."),
    ] = None,
    preset: Annotated[str, typer.Option(help="smoke, laptop or full.")] = "laptop",
    out: Annotated[
        Path, typer.Option(help="Folder for the executed notebooks and their pages.")
    ] = Path("build/workbook"),
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", help="NAME=VALUE, a Python literal or a word; may be repeated."
        ),
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(min=1, help="Seconds that one cell may take.")
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(min=1, help="Notebooks run at the same time; chapter 1 times steps: 1 then."),
    ] = 1,
) -> None:
    """Run notebooks by papermill and export each as an HTML page.

    Ends with 1 where a notebook failed (the others still run), and with 2, before anything runs,
    where the preset, a path or a parameter is wrong.
    """
    given = pairs("--parameter", parameter, "seeds=[0,1]", _literal)
    parameters = {"preset": preset, **given}
    paths = notebooks or chapters(Path("notebooks"))
    _check(paths, out, parameters)
    out.mkdir(parents=True, exist_ok=True)
    settings = ", ".join(f"{name}={value}" for name, value in parameters.items())
    typer.echo(f"{len(paths)} notebooks, {at_once} at a time, with {settings}")
    seconds = timeout or TIMEOUTS[parameters["preset"]]
    outcomes = _outcomes([(path, out / path.name, parameters, seconds) for path in paths], at_once)
    failed = []
    for path in paths:
        typer.echo(f"{path}:")
        lines, succeeded = next(outcomes)
        typer.echo("\n".join(f"  {line}" for line in lines))
        failed += [] if succeeded else [path.stem]
    if failed:
        typer.echo(f"{len(failed)} of {len(paths)} failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def chapters(folder: Path) -> list[Path]:
    """Returns a folder's numbered notebooks, then your_model; ValueError without any."""
    found = [*sorted(folder.glob("[0-9]*.ipynb")), *folder.glob("your_model.ipynb")]
    if not found:
        raise ValueError(
            f"no chapters in {folder}/: their names start with a digit and end in .ipynb; "
            "run this where notebooks/ is, or name the notebooks"
        )
    return found


def _check(notebooks: Sequence[Path], out: Path, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError unless the notebooks are there and take the parameters."""
    import papermill

    if parameters["preset"] not in TIMEOUTS:
        raise ValueError(f"unknown preset {parameters['preset']!r}; known: {', '.join(TIMEOUTS)}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder: name one for the executed notebooks")
    names = [notebook.name for notebook in notebooks]
    for notebook in notebooks:
        if notebook.suffix != ".ipynb" or not notebook.is_file():
            raise ValueError(f"no notebook {notebook}: give the path of an .ipynb file")
        if notebook.resolve().parent == out.resolve():
            raise ValueError(f"{notebook} would be overwritten: {out} must be another folder")
        if names.count(notebook.name) > 1:
            raise ValueError(f"two notebooks would be written to {out / notebook.name}")
        try:
            known = papermill.inspect_notebook(str(notebook))
        except ValueError as error:  # not JSON, not a notebook, or without a kernel's name
            raise ValueError(f"{notebook} cannot be read as a notebook: {error}") from error
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise ValueError(
                f"{notebook} has no parameter {unknown[0]!r}; its cell tagged 'parameters' sets: "
                f"{', '.join(known) or 'nothing'}"
            )


def _outcomes(jobs: list[tuple[Any, ...]], at_once: int) -> Iterator[tuple[list[str], bool]]:
    """Runs notebooks, several at a time in processes: papermill changes its process's folder."""
    if at_once == 1:
        yield from itertools.starmap(_run_one, jobs)
        return
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        longest = sorted(jobs, key=lambda job: int(job[0].stat().st_size), reverse=True)  # first
        begun = {job[0]: pool.submit(_run_one, *job) for job in longest}
        for job in jobs:
            yield begun[job[0]].result()


def _run_one(
    notebook: Path, executed: Path, parameters: Mapping[str, Any], timeout: int
) -> tuple[list[str], bool]:
    """Returns the verdicts or what failed, where the files are, and whether it succeeded."""
    import papermill

    from isolab.cli.page import write_page

    start, folder, page = (
        time.perf_counter(),
        notebook.resolve().parent,
        executed.with_suffix(".html"),
    )
    for stale in (executed, page):
        stale.unlink(missing_ok=True)
    try:
        result = papermill.execute_notebook(
            str(notebook.resolve()),
            str(executed.resolve()),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(folder),
            engine_name=_engine(),
            execution_timeout=timeout,
            autosave_cell_every=AUTOSAVE,
            progress_bar=sys.stderr.isatty(),
            config=_kernel_config(),
        )
        lines = _claims(result) or ["shows no claim"]
        write_page(result, page, images=folder)
    except Exception as error:  # whatever a notebook raised or a kernel died of: the next one runs
        lines = [f"FAILED after {time.perf_counter() - start:.0f} s at {_reason(error)}"]
        return lines + [f"as far as it got: {executed}"] * executed.exists(), False
    lines.append(f"executed notebook: {executed}")
    return [*lines, f"HTML page: {page} ({time.perf_counter() - start:.0f} s)"], True


@functools.cache
def _engine() -> str:
    """Returns the name of an engine that saves every few seconds, not at every cell twice.

    papermill's own does: for a notebook of some megabytes that takes longer than its cells.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *arguments: Any, **options: Any) -> None:
            save = nb_man.save

            def save_seldom(**_: Any) -> None:
                if (nb_man.now() - nb_man.last_save_time).total_seconds() >= AUTOSAVE:
                    save()

            nb_man.save = save_seldom
            try:
                super().execute_managed_notebook(nb_man, *arguments, **options)
            finally:
                nb_man.save = save  # the end is saved

    papermill_engines.register("isolab", Engine)
    return "isolab"


def _kernel_config() -> Any:
    """Returns a config by which a kernel's messages, over local TCP, are encrypted."""
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto"} if zmq.has("curve") else {})


def _claims(notebook: Any) -> list[str]:
    """Returns each claim that an executed notebook shows in a line, its verdict first."""
    from isolab.analysis.claim import MIME

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [o["data"]["text/plain"] for o in outputs if MIME in o.get("data", {})]
    lines = [[" ".join(line.split()) for line in text.splitlines()] for text in texts]
    return ["; ".join([verdict, *rest]) for *rest, verdict in lines]


def _reason(error: Exception) -> str:
    """Returns what a notebook failed of, in one line."""
    from nbclient.exceptions import CellTimeoutError
    from papermill.exceptions import PapermillExecutionError

    message = [*str(error).strip().splitlines(), ""]
    if isinstance(error, PapermillExecutionError):
        value = str(error.evalue).strip().partition("\n")[0]
        cell = f"cell [{error.exec_count}] `{_first(error.source.splitlines())}`"
        return f"{cell}: {error.ename}: {value}"
    if isinstance(error, CellTimeoutError):  # only its text names the cell
        return f"cell `{_first(message[4:])}`: {message[0]}"
    return f"{type(error).__name__}: {message[0]}"


def _first(lines: Sequence[str]) -> str:
    return next((line for line in lines if line.strip()), "").strip()
