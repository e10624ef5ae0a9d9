"""Commands about models: compare two, promote one, and show the history of an alias or the chain behind a model."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from hpt_mlflow.cli.output import echo_table, errors
from hpt_mlflow.errors import HptError

if TYPE_CHECKING:
    from hpt_mlflow.evaluation.certainty import Comparison
    from hpt_mlflow.tracking.models.alias_history import Move
    from hpt_mlflow.tracking.models.lineage import Node

WIDTH = 110
SIZES = ("images", "train", "validation", "test")
STAGE_WORDS = {
    "pretrain": "pretrained",
    "adapt": "adapted",
    "import": "imported, trained",
    "evaluate": "classifier fitted",
}
ALIAS_HELP = "The alias, such as champion or staging."


@click.command()
@click.argument("model_a")
@click.argument("model_b")
def compare(model_a: str, model_b: str) -> None:
    """Compare two models on the same test images: which is better, by how much, and how certain is that?

    Uses the newest evaluations of both with the same test images, protocol and metric. Intervals are 95% bootstrap
    intervals over the test images; that of the difference resamples both models together.

    Example: hpt compare models:/hpt/3 models:/hpt/4
    """
    with errors():
        from hpt_mlflow.stages.models import compare as compare_models

        compared = compare_models(model_a, model_b)
        evaluation_a, evaluation_b = compared.evaluation_a, compared.evaluation_b
        click.echo(
            f"{evaluation_b.dataset}, protocol {evaluation_b.protocol}, "
            f"{compared.scores.images:,} test images of both; "
            f"evaluations {evaluation_a.run_id} and {evaluation_b.run_id}\n"
        )
        _echo_comparison(compared.model_a, compared.model_b, compared.scores)


@click.command()
@click.argument("model", required=False)
@click.option("--alias", default="champion", show_default=True, help=ALIAS_HELP)
@click.option("--margin", default=0.0, show_default=True, help="How much worse the score may be, such as 0.01.")
@click.option("--to", metavar="NAME", help="Copy the version into this registered model, and promote it there.")
@click.option(
    "--standalone/--no-standalone",
    default=True,
    show_default=True,
    help="Whether the copy of --to is to need onnxruntime alone, or this package as the version does; a delta becomes "
    "whole.",
)
@click.option("--force", is_flag=True, help="Promote whatever the comparison says; needs --reason.")
@click.option("--reason", default="", help="Why it is forced; recorded with who did it and when.")
@click.option("--back", is_flag=True, help="Return to the previous champion; MODEL is the name of a registered model.")
def promote(
    model: str | None,
    alias: str,
    margin: float,
    to: str | None,
    standalone: bool,
    force: bool,
    reason: str,
    back: bool,
) -> None:
    """Make a registered version the champion, unless the present one is better on the same test images.

    If its evaluation has registered a classifier, that becomes champion too. Every promotion is recorded: see hpt
    history.

    Examples: hpt promote models:/hpt/4; hpt promote models:/staging/2 --to production; hpt promote --back
    """
    with errors():
        from hpt_mlflow.settings import DEFAULT_MODEL_NAME
        from hpt_mlflow.tracking.connection import connect
        from hpt_mlflow.tracking.models import promotion

        if back and (to or force or reason or margin):
            raise HptError("goes with --alias only", "leave out --to, --margin, --force and --reason", setting="back")
        if not back and model is None:
            raise HptError(
                "none is named", "name the version to promote, such as models:/hpt/4, or use --back", setting="model"
            )
        connect()
        if back:
            done = promotion.roll_back(_model_name(model or DEFAULT_MODEL_NAME), alias)
        else:
            done = promotion.promote(str(model), alias, margin, force, reason, to, standalone)
        if done.comparison:
            _echo_comparison(done.before, done.address, done.comparison)
            click.echo()
        if done.address != done.before:
            name = _model_name(done.address)
            before = f", after {done.before}" if done.before else ""
            click.echo(f"{done.address} is {alias} of {name} now{before}.")
            if done.classifier:
                click.echo(f"{done.classifier} is {alias} of {_model_name(done.classifier)} now.")
        for note in done.notes:
            click.echo(f"Note: {note}.")


@click.command()
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help=ALIAS_HELP)
def history(name: str, alias: str) -> None:
    """List which version of a registered model was champion, from when to when, and who promoted it. Times are UTC.

    Example: hpt history hpt
    """
    with errors():
        from hpt_mlflow.tracking.connection import connect, tracking_errors
        from hpt_mlflow.tracking.models.alias_history import alias_version, moves, registered_model

        connect()
        with tracking_errors(f"cannot read the history of {name}"):
            model = registered_model(_model_name(name))
        if model is None:
            raise HptError(f"there is no registered model {name!r}", setting="name")
        found, now = moves(model, alias), alias_version(model, alias)
        if found:
            ends = [move.time for move in found[1:]] + [""]
            header = ("since", "until", "version", "figure", "by", "how")
            echo_table(header, [_history_row(move, until) for move, until in zip(found, ends, strict=True)])
        else:
            click.echo(f"No promotion to {alias} is recorded.")
        if now != (found[-1].version if found else ""):
            points = f"points to version {now}" if now else "points to nothing"
            click.echo(f"Note: {alias} {points} now; it was changed without hpt promote.")


@click.command()
@click.argument("model")
def lineage(model: str) -> None:
    """Print the chain behind a model as a tree, back to random or imported weights.

    Example: hpt lineage models:/hpt/4
    """
    with errors():
        from hpt_mlflow.stages.models import lineage as chain_behind

        nodes = chain_behind(model)
        for line in _tree(nodes):
            click.echo(line)


def _model_name(address: str) -> str:
    """The registered model of an address; a name is itself."""
    path = address.removeprefix("models:/")
    return path.partition("@")[0].partition("/")[0]


def _echo_comparison(a: str, b: str, found: Comparison) -> None:
    """A table of the figures of two models, and what it means in a sentence."""
    from hpt_mlflow.stages.models import verdict

    rows = [
        (
            figure.name.replace("_", " "),
            str(figure.a),
            str(figure.b),
            f"{figure.difference.value:+.3f} ({figure.difference.ends})",
            _p(figure.p),
        )
        for figure in (found.primary, found.balanced)
        if figure
    ]
    echo_table(("figure", a, b, "difference", "p"), rows)
    if found.mcnemar_p is not None:
        click.echo(
            f"McNemar's test of accuracy: {a} alone is right on {found.only_a:,} images, {b} alone on "
            f"{found.only_b:,}; p = {_p(found.mcnemar_p)}"
        )
    click.echo(verdict(a, b, found))


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def _history_row(move: Move, until: str) -> Sequence[str]:
    figure = move.metric.removeprefix("test/")
    if move.value is not None:
        figure += f" {move.value:.3f}" + (f" ({move.interval})" if move.interval else "")
    how = "went back" if move.back else "promoted"
    if move.reason:
        how = f"forced: {move.reason}"
    return (_minute(move.time), _minute(until) or "now", move.version, figure or "-", move.by, how)


def _minute(time: str) -> str:
    """2026-05-01T12:00:59.123456Z as 2026-05-01 12:00:59."""
    return time.replace("T", " ").partition(".")[0]


def _tree(nodes: Sequence[Node]) -> Iterator[str]:
    """Lines of a tree: each model below the one that it led to, what it started from last."""
    for depth, node in enumerate(nodes):
        yield ("   " * (depth - 1) + "└─ " if depth else "") + _title(node)
        indent = "   " * depth + "│  "
        for text in _details(node):
            yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
    last = "   " * (len(nodes) - 1) + "└─ "
    yield from textwrap.wrap(nodes[-1].start, WIDTH, initial_indent=last, subsequent_indent=" " * len(last))


def _title(node: Node) -> str:
    return node.address + (f"  [{', '.join(node.aliases)}]" if node.aliases else "")


def _details(node: Node) -> Iterator[str]:
    """Data, method and figures of one model, a line each."""
    if node.copied_from:
        yield f"copy of {node.copied_from}"
    else:
        sizes = [f"{count:,} {part}" for part, count in node.sizes.items() if part in SIZES and count]
        data = f"{node.dataset_name or 'unknown data'}" + (f": {', '.join(sizes)}" if sizes else "")
        yield f"{STAGE_WORDS.get(node.stage, 'made')} on {data}; digest {node.dataset_digest or 'unknown'}"
        update = [f"update {node.update}"] if node.update and node.stage == "adapt" else []
        method = update + [f"{name.replace('_', ' ')} {value}" for name, value in node.method.items()]
        if method and node.stage != "evaluate":
            yield ", ".join(method)
        if node.validation is not None:
            yield f"knn/val_accuracy {node.validation:.3f}"
    if node.is_delta:
        yield f"keeps only its difference from {node.start}"
    if node.deltas:
        need = "needs" if len(node.deltas) == 1 else "need"
        yield f"must not be deleted: {', '.join(node.deltas)} {need} it"
    for one in node.evaluations:
        protocol = f", protocol {one.protocol}" if one.protocol else ""
        yield f"evaluated on {one.dataset}: {one.metric} {one.primary}{protocol}"
