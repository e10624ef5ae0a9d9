"""The command that classifies a folder of images."""

from __future__ import annotations

from pathlib import Path

import click

from hpt_mlflow.cli.output import errors, log_to_stderr


@click.command()
@click.argument("model")
@click.argument("data", metavar="FOLDER")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("predictions.csv"),
    show_default=True,
    help="CSV file with one line per image.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def predict(model: str, data: str, output: Path, device: str) -> None:
    """Classify the images in FOLDER with MODEL, an address such as models:/hpt-classifier@champion."""
    log_to_stderr()
    with errors():
        from hpt_mlflow.stages.predict import predict as classify

        classified, failed = classify(model, data, output, device)
        unread = f"; {failed} could not be read, see the column error" if failed else ""
        click.echo(f"{output}: {classified} images classified{unread}")
