"""Commands that import weights from other programs, and export registered models for them."""

from __future__ import annotations

from typing import Any

import click

from hpt_mlflow.cli.output import errors, log_to_stderr
from hpt_mlflow.models.architecture import FEATURES
from hpt_mlflow.settings import DEFAULT_MODEL_NAME


@click.command("import")
@click.argument("source")
@click.option(
    "--model-name",
    default=DEFAULT_MODEL_NAME,
    show_default=True,
    help="Registered model for the new version.",
)
@click.option("--alias", help="Alias of the new version, such as base.")
@click.option(
    "--arch",
    help="Backbone: a network of torchvision, or timm:NAME. Default: ResNets, ConvNeXts and vision "
    "transformers are recognised.",
)
@click.option(
    "--image-size",
    type=click.IntRange(8, 2048),
    metavar="N",
    help="Side of the images, in pixels. Default: 224, or that of the weights.",
)
@click.option(
    "--features",
    type=click.Choice(FEATURES),
    help="Features of a vision transformer: its class token, the mean of its patches, or both. Default: cls.",
)
def import_(source: str, **options: Any) -> None:
    """Register weights from another program unchanged, as the Base of a chain.

    SOURCE is a file of DINOv2, DINOv3, MAE, MoCo, OpenSelfSup, torchvision, timm, Lightly or this project;
    torchvision:NAME, weights that torchvision publishes, such as torchvision:resnet50; or efficientnet-lite0, weights
    of ImageNet that come with a package. Nothing in the file is executed.
    """
    log_to_stderr()
    with errors():
        from hpt_mlflow.stages.weights import import_weights

        result = import_weights(source, **options)
    click.echo(f"import: run {result.run_id}, model {result.model_uri} ({' > '.join(result.chain)})")


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path())
@click.option(
    "--format",
    required=True,
    type=click.Choice(["torchvision", "timm", "detectron2", "onnx", "mlflow"]),
    help="torchvision, timm: a state dict (.pth, or .safetensors); detectron2: for its DetectionCheckpointer (.pth), "
    "with MODEL.RESNETS.STRIDE_IN_1X1 False and INPUT.FORMAT RGB; onnx: the network, from normalised images; mlflow: a "
    "folder with a model that MLflow serves where this package is not installed, from arrays of images.",
)
def export(model: str, file: str, format: str) -> None:
    """Write a registered model in the format of another library, or as one that stands alone.

    MODEL is a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model hpt. An existing FILE is replaced; a
    folder is not.
    """
    log_to_stderr()
    with errors():
        from hpt_mlflow.stages.weights import export as write

        written = write(model, format, file)
    click.echo(f"export: {written}")


@click.command("make-whole")
@click.argument("model")
@click.option("--to", metavar="NAME", help="Registered model for the copy. Default: that of MODEL.")
def make_whole(model: str, to: str | None) -> None:
    """Register a version that keeps only its difference from its parent again, with whole weights.

    Such versions are made by hpt adapt --store delta. The copy needs no other version, so that it can be served, and
    its parent deleted. It has the evaluations and the lineage of MODEL.

    Example: hpt make-whole models:/hpt/4
    """
    log_to_stderr()
    with errors():
        from hpt_mlflow.stages.weights import make_whole as copy

        made = copy(model, to)
    click.echo(f"make-whole: {made}")
