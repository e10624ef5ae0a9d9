"""The weights that torchvision publishes, by name: downloaded, or from torch's folder of downloads."""

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

# The prefix that users write before the name of a network, or of its weights.
PREFIX = "torchvision:"
# The name of a published file ends in the first digits of its checksum.
CHECKSUM = re.compile(r"-([0-9a-f]{8,})\.\w+$")


def read_torchvision_weights(
    source: str, arch: str | None = None, image_size: int | None = None, default_size: int | None = None
) -> ForeignWeights:
    """Weights by their name, downloaded if necessary, and verified by their checksum.

    Args:
        source: `torchvision:resnet50`, its newest weights; or `torchvision:ResNet50_Weights.IMAGENET1K_V1`.
        arch: of the network, if the user gave it.
        image_size: side of the images in pixels.
        default_size: that if none is given. Default: that of torchvision's evaluation.

    Raises:
        HptError: there are no such weights, they cannot be downloaded, or they are damaged.
    """
    network, published = _find(source)
    transforms = published.transforms()
    if arch not in (None, network):
        raise HptError(f"{source} is a {network}, not a {arch}", "leave arch out", setting="arch")
    file = _fetch(published.url, source)
    read = read_weights(file, network, image_size, default_size=default_size or transforms.crop_size[0])
    return replace(
        read,
        name=source.removeprefix(PREFIX),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        chain=("imagenet",),
    )


def _find(source: str) -> tuple[str, WeightsEnum]:
    """The network of a name, and its weights."""
    wanted = source.removeprefix(PREFIX)
    # Only networks for image classification.
    for network in models.list_models(module=models):
        weights = models.get_model_weights(network)
        if wanted == network:
            return network, weights.DEFAULT
        for published in weights:
            if wanted in (str(published), f"{network}.{published.name}"):
                return network, published
    raise HptError(
        f"torchvision has no image classification weights named {printable(wanted)}",
        f"use a network, such as {PREFIX}resnet50, or one of its weights, such as "
        f"{PREFIX}ResNet50_Weights.IMAGENET1K_V1",
        setting="weights",
    )


def _fetch(url: str, source: str) -> Path:
    """The file of an address, in torch's folder of downloads.

    Raises:
        HptError: it cannot be downloaded; names the folder.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlsplit(url).path).name
    checksum = CHECKSUM.search(file.name)
    if file.is_file():
        if checksum and not sha256(file).startswith(checksum[1]):
            raise HptError(
                f"{file} is not the file that torchvision publishes under this name: its checksum differs",
                "remove it, or give its path",
                setting="weights",
            )
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Writes a temporary file, and renames it once it is complete and its checksum is right.
        torch.hub.download_url_to_file(url, str(file), checksum[1] if checksum else None, progress=False)
    # RuntimeError: the checksum is not the one in the name.
    except (URLError, OSError, RuntimeError) as error:
        raise HptError(
            f"{source} cannot be downloaded from {url} ({one_line(error)})",
            f"get that file elsewhere and put it into {folder}",
            setting="weights",
        ) from error
    return file
