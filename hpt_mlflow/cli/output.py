"""How commands speak: tables, warnings, and errors in one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from hpt_mlflow.errors import HptError
from hpt_mlflow.signals import INTERRUPTED


@contextmanager
def errors(interrupted: str = "Interrupted.") -> Iterator[None]:
    """Errors as one line, and the exit codes of a shell.

    Args:
        interrupted: what to print on Ctrl-C or SIGTERM.
    """
    try:
        yield
    except HptError as error:
        failure = click.ClickException(str(error))
        _end_if_abandoned(failure.exit_code, failure.show)
        raise failure from error
    except KeyboardInterrupt:
        click.echo(interrupted, err=True)
        _end_if_abandoned(INTERRUPTED)
        sys.exit(INTERRUPTED)


def _end_if_abandoned(code: int, say: Callable[[], object] = lambda: None) -> None:
    """`group.end_if_abandoned`, if this process has trained: others start without importing torch."""
    if "hpt_mlflow.group" in sys.modules:
        from hpt_mlflow.group import end_if_abandoned

        end_if_abandoned(code, say)


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their header, columns aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, tuple("-" * width for width in widths), *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def log_to_stderr() -> None:
    """Show warnings of the package."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
