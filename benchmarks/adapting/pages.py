"""Writes tables into pages, between `<!-- measure.py NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import click
from tables import TABLES, files_argument

PLACE = re.compile(r"(<!-- measure\.py (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


@click.command()
@files_argument
@click.option("--to", "pages", multiple=True, type=click.Path(path_type=Path, exists=True), required=True)
def page(files: tuple[Path, ...], pages: tuple[Path, ...]) -> None:
    """Write each table anew where a page has a place for it."""
    for each in pages:
        text = PLACE.sub(lambda place: f"{place[1]}{_table(place[2], files)}\n{place[3]}", each.read_text())
        each.write_text(text)


def _table(name: str, files: tuple[Path, ...]) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        TABLES[name].main([str(file) for file in files], standalone_mode=False)
    return printed.getvalue()
