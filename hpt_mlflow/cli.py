"""The `hpt` command: the stages, with one option for each of their settings."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from hpt_mlflow.errors import HptError
from hpt_mlflow.reference import STAGES, TYPE_NAMES, default_text, reference_page, settings_of
from hpt_mlflow.settings import value_type

# What shells report of a program that Ctrl-C ended.
INTERRUPTED = 130


class Value(click.ParamType):
    """The value of a setting. An empty one means that it is not given: MLproject cannot say so in another way."""

    def __init__(self, kind: type, choices: tuple[str, ...] | None) -> None:
        self.kind = kind
        self.choices = choices
        self.name = TYPE_NAMES[kind]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What help shows in place of a value."""
        if self.choices:
            return f"[{'|'.join(self.choices)}]"
        return {int: "N", float: "X", bool: "[true|false]", str: "TEXT"}[self.kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """From text to the type of the setting."""
        if value is None or value == "":
            return None
        try:
            return click.BOOL.convert(value, param, ctx) if self.kind is bool else self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is not a {self.name}", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hpt_mlflow")
def hpt() -> None:
    """Hierarchical PreTraining: self-supervised training on a large Base set, then on sets nearer and nearer to yours.

    Each stage starts from the registered model of the one before. Runs, models and figures are kept by MLflow, wherever
    MLFLOW_TRACKING_URI says (default: mlflow.db in this folder).
    """


def _option(stage: str, field: dataclasses.Field[Any]) -> click.Option:
    kind = value_type(STAGES[stage], field.name)
    default = default_text(stage, field)
    text = field.metadata["help"] + (f"  [default: {default}]" if default else "")
    # A switch may stand alone: --strict means --strict true.
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kind is bool else {}
    return click.Option(
        [f"--{field.name.replace('_', '-')}"], type=Value(kind, field.metadata["choices"]), help=text, **alone
    )


def _command(stage: str) -> click.Command:
    def run(**given: Any) -> None:
        _run(stage, {name: value for name, value in given.items() if value is not None})

    return click.Command(
        stage, callback=run, params=[_option(stage, field) for field in settings_of(stage)], help=STAGES[stage].__doc__
    )


for _stage in STAGES:
    hpt.add_command(_command(_stage))


@hpt.command()
def reference() -> None:
    """Print docs/reference.md: every setting of every stage."""
    click.echo(reference_page(), nl=False)


@hpt.command()
def results() -> None:
    """Print the figures of all finished evaluations, side by side."""
    with _errors():
        from hpt_mlflow.tracking.connection import connect
        from hpt_mlflow.tracking.results import COLUMNS, evaluations

        connect()
        rows = [
            (one.model, one.chain, one.dataset, *(f"{one.figures[name]:.3f}" for name in COLUMNS))
            for one in evaluations()
        ]
        _echo_table(("model", "chain", "evaluated on", *COLUMNS), rows)


@hpt.command()
def runs() -> None:
    """List runs that were not finished, and the command that goes on with each."""
    with _errors():
        from hpt_mlflow.tracking.connection import connect
        from hpt_mlflow.tracking.unfinished import unfinished_runs

        connect()
        found = unfinished_runs()
        if not found:
            click.echo("Every run is finished.")
            return
        _echo_table(("run", "name", "state", "training state", "last sign"), [run.cells for run in found])
        continuable = [run for run in found if run.command]
        if continuable:
            click.echo("\nTo go on with one of them, type its command again:")
        for run in continuable:
            click.echo(f"  {run.run_id}  {run.command}")


@hpt.command()
@click.option("--patience", default=30.0, show_default=True, help="Seconds to wait for a server that does not answer.")
def sync(patience: float) -> None:
    """Send to MLflow what trainings could not deliver, and mark runs KILLED whose process died without a word."""
    with _errors():
        from hpt_mlflow.tracking.connection import prepare
        from hpt_mlflow.tracking.spool import spool_root
        from hpt_mlflow.tracking.sync import sync_all

        _log_to_stderr()
        prepare()
        outcomes = sync_all(patience)
        for one in outcomes:
            left = f", {one.left} are left in {one.folder}" if one.left else ""
            click.echo(f"{one.run}: {one.delivered} entries delivered{left}" + (f" ({one.why})" if one.why else ""))
        if not outcomes:
            click.echo(f"Nothing waits in {spool_root()}.")
        if any(one.left for one in outcomes):
            raise HptError("some entries could not be delivered; they are kept, run hpt sync again")


def _echo_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, tuple("-" * width for width in widths), *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _log_to_stderr() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)


def _run(stage: str, settings: dict[str, Any]) -> None:
    """Run a stage, and say in one line how it ended."""
    _log_to_stderr()
    with _errors():
        # Checked before torch and MLflow are imported, which takes seconds.
        STAGES[stage](**settings)
        result = getattr(import_module(f"hpt_mlflow.stages.{stage}"), stage)(**settings)
    click.echo(f"{stage}: run {result.run_id}, model {result.model_uri} ({' > '.join(result.chain)})")
    for name, value in result.metrics.items():
        click.echo(f"  {name:28} {value:.4g}")


@contextmanager
def _errors() -> Iterator[None]:
    """Errors as one line, and the exit codes of a shell."""
    try:
        yield
    except HptError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo(
            "Interrupted: a run that was started is KILLED and keeps its training state; the same command goes on.",
            err=True,
        )
        sys.exit(INTERRUPTED)
