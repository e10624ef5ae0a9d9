"""The command that shows the paper's datasets."""

from __future__ import annotations

import click

from hpt_mlflow.cli.output import echo_table, errors
from hpt_mlflow.data.catalogue import ENTRIES, CatalogueEntry, Channels, catalogue_entry

NOT_STATED = "not stated"
HEADER = ("name", "domain", "task", "classes", "images", "metric", "licence")
# Beyond this, a cell of the table ends in an ellipsis; the page of the dataset has all of it.
WIDEST_CELL = 34


@click.command()
@click.argument("name", required=False)
def datasets(name: str | None) -> None:
    """List the paper's 16 datasets; with NAME, show one: where people get it, its folder, and how to open it."""
    with errors():
        if name is not None:
            _echo_page(catalogue_entry(name.removeprefix("paper:").partition("?")[0]))
            return
        echo_table(HEADER, [_row(entry) for entry in ENTRIES])
        click.echo("\nOne on a page: hpt datasets NAME. To open one: --data 'paper:NAME?root=DIR'.")


def _row(entry: CatalogueEntry) -> tuple[str, ...]:
    images = _images(entry)
    cells = (entry.key, entry.domain, entry.task, str(entry.classes), images, entry.metric, entry.licence or NOT_STATED)
    return tuple(cell if len(cell) <= WIDEST_CELL else cell[: WIDEST_CELL - 3].rstrip() + "..." for cell in cells)


def _echo_page(entry: CatalogueEntry) -> None:
    sizes = entry.sizes
    lines = {
        "address": entry.address,
        "domain": entry.domain,
        "task": entry.task,
        "classes": str(entry.classes),
        "images": f"{_count(sizes.total)} (train {_count(sizes.train)}, validation {_count(sizes.validation)}, "
        f"test {_count(sizes.test)})",
        "metric": entry.metric,
        "mean": _channels(entry.mean),
        "std": _channels(entry.std),
        "split": entry.split,
        "source": entry.source,
        "licence": entry.licence or NOT_STATED,
    }
    click.echo(f"{entry.title}\n")
    for label, value in lines.items():
        click.echo(f"{label:<9}{value}")
    if entry.note:
        click.echo(f"{'note':<9}{entry.note}")
    click.echo("\nIts folder when unpacked, DIR in the address:\n")
    for line in entry.layout:
        click.echo(f"  {line}")


def _images(entry: CatalogueEntry) -> str:
    """How many there are, or those of the parts whose sizes are known and a plus."""
    parts = sum(part or 0 for part in entry.sizes[1:])
    return f"{parts:,}+" if entry.sizes.total is None and parts else _count(entry.sizes.total)


def _count(number: int | None) -> str:
    return NOT_STATED if number is None else f"{number:,}"


def _channels(values: Channels) -> str:
    return " ".join(f"{value:.4f}" for value in values)
