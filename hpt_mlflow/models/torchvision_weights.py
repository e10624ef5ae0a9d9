"""The weights that torchvision publishes, by name: downloaded, or from where torch keeps what was downloaded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from torchvision import models
from torchvision.models import WeightsEnum

from hpt_mlflow.errors import HptError, one_line, printable
from hpt_mlflow.models.foreign import ForeignWeights, read_weights
from hpt_mlflow.models.weight_file import sha256

# What users write in front of a network, or of one of its weights by torchvision's name.
PREFIX = "torchvision:"
# The name of a published file ends in the first digits of its checksum.
CHECKSUM = re.compile(r"-([0-9a-f]{8,})\.\w+$")


def read_torchvision_weights(source: str, arch: str | None = None, image_size: int | None = None) -> ForeignWeights:
    """Weights by their name, downloaded where they are not there yet, and checked against their checksum.

    Args:
        source: `torchvision:resnet50`, its newest weights; or `torchvision:ResNet50_Weights.IMAGENET1K_V1`.
        arch: what the user believes the network to be.
        image_size: side of the images in pixels that they are for. Default: what torchvision evaluates them with.

    Raises:
        HptError: there are no such weights, they cannot be downloaded, or they are damaged.
    """
    network, published = _find(source)
    transforms = published.transforms()
    if arch not in (None, network):
        raise HptError(f"arch: {source} is a {network}, not a {arch}; leave arch out")
    read = read_weights(_fetch(published.url, source), network, image_size or transforms.crop_size[0])
    return replace(
        read,
        name=source.removeprefix(PREFIX),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        chain=("imagenet",),
    )


def _find(source: str) -> tuple[str, WeightsEnum]:
    """The network that a name says, and its weights."""
    wanted = source.removeprefix(PREFIX)
    # Of torchvision's networks those for the classification of images.
    for network in models.list_models(module=models):
        weights = models.get_model_weights(network)
        if wanted == network:
            return network, weights.DEFAULT
        for published in weights:
            if wanted in (str(published), f"{network}.{published.name}"):
                return network, published
    raise HptError(
        f"weights: torchvision has none for the classification of images named {printable(wanted)}; write a network, "
        f"such as {PREFIX}resnet50, or one of its weights, such as {PREFIX}ResNet50_Weights.IMAGENET1K_V1"
    )


def _fetch(url: str, source: str) -> Path:
    """The file behind an address, where torch keeps such files.

    Raises:
        HptError: it cannot be downloaded; says where it is looked for.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlsplit(url).path).name
    checksum = CHECKSUM.search(file.name)
    if file.is_file():
        if checksum and not sha256(file).startswith(checksum[1]):
            raise HptError(
                f"weights: {file} is not what torchvision publishes under this name: its checksum is another one; "
                "remove it, or name it by its path"
            )
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Writes beside the file, and puts it in place when it is complete and its checksum is right.
        torch.hub.download_url_to_file(url, str(file), checksum[1] if checksum else None, progress=False)
    # RuntimeError: the checksum is not the one in the name.
    except (URLError, OSError, RuntimeError) as error:
        raise HptError(
            f"weights: {source} cannot be downloaded from {url} ({one_line(error)}); get that file elsewhere and put "
            f"it into {folder}"
        ) from error
    return file
