"""One command for each stage, with one option for each of its settings."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Collection
from typing import Any

import click

from hpt_mlflow.cli.output import errors, log_to_stderr
from hpt_mlflow.options import Settings, choices_of, marked, value_type
from hpt_mlflow.reference import TYPE_NAMES, meaning, settings_of
from hpt_mlflow.stages import Stage

INTERRUPTED = (
    "Interrupted: a run that was started is KILLED and keeps its training state; repeat the command to resume."
)


class Value(click.ParamType):
    """The value of a setting.

    If the setting has no default, an empty text means that it is not given, which MLproject cannot say otherwise.
    """

    def __init__(self, kind: type, choices: Collection[str] | None, may_be_empty: bool) -> None:
        self.kind = kind
        self.choices = choices
        self.may_be_empty = may_be_empty
        self.name = TYPE_NAMES[kind]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What help shows in place of a value."""
        if self.choices:
            return f"[{'|'.join(self.choices)}]"
        return {int: "N", float: "X", bool: "[true|false]", str: "TEXT"}[self.kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """From text to the type of the setting."""
        if value is None or (value == "" and self.may_be_empty):
            return None
        try:
            # Click takes an empty text for no.
            return click.BOOL.convert(value or "''", param, ctx) if self.kind is bool else self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is not a {self.name}", param, ctx)


def _option(settings: type[Settings], field: dataclasses.Field[Any]) -> click.Option:
    kind = value_type(settings, field.name)
    # A switch may stand alone: --strict means --strict true.
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kind is bool else {}
    return click.Option(
        [f"--{field.name.replace('_', '-')}"],
        type=Value(kind, choices_of(field), field.default is None),
        help=meaning(settings, field),
        **alone,
    )


def stage_command(stage: Stage) -> click.Command:
    """The command that runs a stage."""

    taken = next(iter(marked(stage.settings, "arguments")), None)

    def run(**given: Any) -> None:
        values = {name: value for name, value in given.items() if value is not None}
        if taken and (words := click.get_current_context().args):
            if taken in values:
                raise click.UsageError(f"{shlex.join(words)} and --{taken} are both given; use one of them")
            values[taken] = words[0] if len(words) == 1 and os.path.exists(words[0]) else shlex.join(words)
        _run(stage, values)

    options: list[click.Parameter] = [_option(stage.settings, field) for field in settings_of(stage.settings)]
    return click.Command(
        stage.name,
        callback=run,
        params=options,
        help=stage.settings.__doc__,
        options_metavar=f"[{taken.upper()}...] [OPTIONS]" if taken else "[OPTIONS]",
        context_settings={"allow_extra_args": taken is not None},
    )


def _run(stage: Stage, settings: dict[str, Any]) -> None:
    """Run a stage, and print its result."""
    log_to_stderr()
    with errors(INTERRUPTED):
        # Checked before torch and MLflow are imported, which takes seconds.
        stage.settings(**settings)
        result = stage(**settings)
    from hpt_mlflow.group import is_first

    # A dry run has no result; of several processes, the first one prints it.
    if result is None or not is_first():
        return
    model = f", model {result.model_uri}" if result.model_uri else ""
    click.echo(f"{stage.name}: run {result.run_id}{model} ({' > '.join(result.chain)})")
    if result.classifier_uri:
        click.echo(f"  classifier {result.classifier_uri}: hpt predict {result.classifier_uri} FOLDER")
    for name, value in result.metrics.items():
        click.echo(f"  {name:28} {value:.4g}")
