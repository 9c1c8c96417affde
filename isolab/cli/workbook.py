"""Reruns of notebooks by papermill: the executed notebook, its HTML page and its verdicts.

A chapter is a notebook with one cell tagged ``parameters`` whose first parameter is ``preset``. It
runs with its own folder as the working directory, as it does in JupyterLab, on the kernel of the
Python that runs this module.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PRESETS: Final = ("smoke", "laptop", "full")

# Seconds that one cell may take: far beyond the presets' budgets, so that only a hang meets it.
TIMEOUTS: Final = {"smoke": 600, "laptop": 3600, "full": 48 * 3600}

# Seconds between saves while a cell runs, so that an interrupted run leaves its outputs behind.
_AUTOSAVE: Final = 5


@dataclass(frozen=True)
class Outcome:
    """The outcome of one notebook.

    Args:
        executed: the executed notebook; where ``error`` is set, up to the cell that failed.
        seconds: wall time, the page included.
        claims: the JSON of each claim shown, in order, as ``isolab.analysis.claim`` writes it.
        error: what went wrong, in one line, or None.
    """

    executed: Path
    seconds: float
    claims: tuple[Mapping[str, Any], ...]
    error: str | None

    def __str__(self) -> str:
        """Tells the verdicts, or what failed, and where the files are."""
        if self.error is not None:
            lines = [f"FAILED after {self.seconds:.0f} s at {self.error}"]
            if self.executed.exists():
                lines.append(f"as far as it got: {self.executed}")
        else:
            lines = [verdict(claim) for claim in self.claims] or ["shows no claim"]
            lines.append(f"executed notebook: {self.executed}")
            lines.append(f"HTML page: {self.executed.with_suffix('.html')} ({self.seconds:.0f} s)")
        return "\n".join(f"  {line}" for line in lines)


def chapters(folder: Path) -> list[Path]:
    """Returns the numbered notebooks of a folder, in reading order; ValueError without any."""
    found = sorted(folder.glob("[0-9]*.ipynb"))
    if not found:
        raise ValueError(
            f"no chapters in {folder}/: their names start with a digit and end in .ipynb; "
            "run this where notebooks/ is, or name the notebooks"
        )
    return found


def check(notebooks: Sequence[Path], out: Path, parameters: Mapping[str, Any]) -> None:
    """Checks that the notebooks are there and take the parameters, before anything runs.

    Raises:
        ValueError: the preset is unknown; a path is no notebook; two outputs, or an output and its
            notebook, would be one file; a notebook lacks a parameter.
    """
    import papermill

    preset = parameters.get("preset")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
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
        for name in parameters:
            if name not in known:
                raise ValueError(
                    f"{notebook} has no parameter {name!r}; its cell tagged 'parameters' sets: "
                    f"{', '.join(known) or 'nothing'}"
                )


def run(
    notebooks: Sequence[Path],
    out: Path,
    parameters: Mapping[str, Any],
    timeout: int | None = None,
    say: Callable[[str], None] = print,
    at_once: int = 1,
) -> list[Outcome]:
    """Runs notebooks and exports each as a page; a failure stops only its own.

    Args:
        notebooks: paths, run in this order.
        out: folder for the executed notebooks and their pages; made if missing.
        parameters: what goes into every notebook's ``parameters`` cell; ``preset`` is required.
        timeout: seconds that one cell may take; None takes the preset's from ``TIMEOUTS``.
        say: told what starts and what came of it.
        at_once: how many run at the same time, each in a process of its own; more than one disturbs
            what a notebook times.

    Raises:
        ValueError: as in ``check``, or ``at_once`` below 1; nothing has run then.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}; allowed: 1 or more")
    check(notebooks, out, parameters)
    out.mkdir(parents=True, exist_ok=True)
    seconds = TIMEOUTS[parameters["preset"]] if timeout is None else timeout
    settings = ", ".join(f"{name}={value}" for name, value in parameters.items())
    say(f"{len(notebooks)} notebooks, {at_once} at a time, with {settings}")
    jobs = [(notebook, out / notebook.name, parameters, seconds) for notebook in notebooks]
    outcomes = []
    with contextlib.ExitStack() as closing:
        ran: Iterator[Outcome] = itertools.starmap(_run_one, jobs)
        if at_once > 1:  # processes, as papermill changes the folder of its whole process
            spawned = multiprocessing.get_context("spawn")
            pool = closing.enter_context(ProcessPoolExecutor(at_once, spawned))
            longest = sorted(jobs, key=lambda job: job[0].stat().st_size, reverse=True)  # first
            begun = {job[0]: pool.submit(_run_one, *job) for job in longest}
            ran = (begun[notebook].result() for notebook in notebooks)
        for notebook in notebooks:
            say(f"{notebook}:")
            outcomes.append(next(ran))
            say(str(outcomes[-1]))
    return outcomes


def _run_one(
    notebook: Path, executed: Path, parameters: Mapping[str, Any], timeout: int
) -> Outcome:
    import papermill

    from isolab.cli.page import write_page

    start = time.perf_counter()
    claims: tuple[Mapping[str, Any], ...] = ()
    problem = None
    page = executed.with_suffix(".html")
    for stale in (executed, page):
        stale.unlink(missing_ok=True)
    try:
        result = papermill.execute_notebook(
            str(notebook.resolve()),
            str(executed.resolve()),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(notebook.resolve().parent),
            engine_name=_engine(),
            execution_timeout=timeout,
            autosave_cell_every=_AUTOSAVE,
            progress_bar=sys.stderr.isatty(),
            config=_kernel_config(),
        )
        claims = _claims(result)
        write_page(result, page, images=notebook.resolve().parent)
    except Exception as error:  # whatever a notebook raised or a kernel died of: the next one runs
        problem = _reason(error)
    return Outcome(executed, time.perf_counter() - start, claims, problem)


@functools.cache
def _engine() -> str:
    """Returns the name of an engine that saves every few seconds, not at every cell twice.

    papermill's own does: for a notebook of some megabytes that takes longer than its cells.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *arguments: Any, **options: Any) -> None:
            save, saved = nb_man.save, -float("inf")

            def save_now_and_then(**changes: Any) -> None:
                nonlocal saved
                if time.monotonic() - saved >= _AUTOSAVE:
                    save(**changes)
                    saved = time.monotonic()

            nb_man.save = save_now_and_then
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


def _claims(notebook: Any) -> tuple[Mapping[str, Any], ...]:
    """Returns the JSON of each claim that an executed notebook shows, in order."""
    from isolab.analysis.claim import MIME

    return tuple(
        output["data"][MIME]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if MIME in output.get("data", {})
    )


def verdict(claim: Mapping[str, Any]) -> str:
    """Returns a claim's JSON as one line, the verdict first.

    Example:
        >>> verdict({"question": "Fewer steps?", "measured": 1.62, "interval": [1.5, None],
        ...          "threshold": 1.1, "direction": "above", "verdict": "reproduced"})
        'reproduced: Fewer steps? 1.62 (1.5 to ∞), threshold above 1.1'
    """
    measured, interval, threshold = (claim.get(k) for k in ("measured", "interval", "threshold"))
    ours = "no finite number" if measured is None else f"{measured:.4g}"
    if interval is not None:
        ours += f" ({_range(interval)})"
    limit = _range(threshold) if isinstance(threshold, Sequence) else _range([threshold])
    unit = f" {claim['unit']}" if claim.get("unit") else ""
    direction = f"{claim['direction']} " if claim.get("direction") else ""
    line = f"{claim['verdict']}: {claim['question']} {ours}{unit}, threshold {direction}{limit}"
    return f"{line}; {claim['reason']}" if claim.get("reason") else line


def _range(ends: Sequence[float | None]) -> str:
    # JSON has no infinity, so an open end is null: the first of a pair is low, the last high.
    words = [f"{end:.4g}" if end is not None else "∞" for end in ends]
    if len(ends) == 2 and ends[0] is None:
        words[0] = "-∞"
    return " to ".join(words)


def _reason(error: Exception) -> str:
    """Returns what a notebook failed of, in one line."""
    from nbclient.exceptions import CellTimeoutError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        code = next((line for line in error.source.splitlines() if line.strip()), "").strip()
        message = str(error.evalue).strip().partition("\n")[0]
        return f"cell [{error.exec_count}] `{code}`: {error.ename}: {message}"
    if isinstance(error, CellTimeoutError):  # only its text names the cell
        first, _, rest = str(error).partition("\n")
        code = next((line for line in rest.splitlines()[3:] if line.strip()), "").strip()
        return f"cell `{code}`: {first}"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
