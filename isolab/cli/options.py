"""What the commands share: options NAME=VALUE, and errors told in one line."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer

from isolab.results.store import StoreWarning


@contextlib.contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Tells errors and the store's warnings in a line each, after the command's name.

    Ends with 2 for a wrong argument, 130 for Ctrl-C, 1 for what cannot be done.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        typer.echo(f"{command}: warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", StoreWarning)
        warnings.showwarning = show
        try:
            yield
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the last: `| head` has seen enough
            raise
        except KeyboardInterrupt as stopped:
            typer.echo(f"{command}: {str(stopped) or 'stopped by Ctrl-C'}", err=True)
            raise typer.Exit(130) from None
        except (ValueError, ImportError, OSError, MemoryError, RuntimeError) as error:
            typer.echo(f"{command}: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, ValueError | ImportError) else 1) from None


def pairs(
    option: str, texts: Sequence[str] | None, example: str, read: Callable[[str], Any] = str
) -> dict[str, Any]:
    """Returns the values by name of a repeated option; ValueError for what is no such pair."""
    found: dict[str, Any] = {}
    for text in texts or ():
        try:
            name, word = text.split("=", 1)
            value = read(word)
        except ValueError:
            raise ValueError(f"{option} {text!r} is not NAME=VALUE, such as {example}") from None
        if name in found:
            raise ValueError(f"{option} {name} is given twice")
        found[name] = value
    return found
