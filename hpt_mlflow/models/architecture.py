"""Which network a backbone is, as one value."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpt_mlflow.errors import HptError

# How the name of a network starts that was passed as an object.
MODULE = "module:"
FEATURES = ("cls", "mean", "cls+mean")
# How names of transformers say the side of their patches, in pixels: vit_small_patch14_dinov2 of timm, vit_b_16 of
# torchvision.
_PATCH = re.compile(r"_patch(\d+)|^vit_[a-z]_(\d+)$")


class Architecture(NamedTuple):
    """A network and the images that it takes.

    Attributes:
        name: a classification network of torchvision, or `timm:` and the name of a network of timm.
        image_size: side of the square images, in pixels.
        small_stem: for ResNets, a 3 x 3 convolution of stride 1 without max pooling in front (He et al., CVPR 2016,
            section 4.2), for images of about 32 pixels.
        channels: of the images.
        features: for vision transformers, one of `FEATURES`: the class token, the mean of the patches, or both; empty
            for what the library of the network takes.
    """

    name: str
    image_size: int
    small_stem: bool = False
    channels: int = 3
    features: str = ""

    def __str__(self) -> str:
        stem = " with the small stem" if self.small_stem else ""
        features = f", features {self.features}," if self.features else ""
        channels = "" if self.channels == 3 else f" and {self.channels} channels"
        return f"{self.name}{stem}{features} at {self.image_size} px{channels}"

    def as_settings(self) -> dict[str, str | int | bool | None]:
        """The settings that name it, as users write them and files keep them."""
        return {
            "arch": self.name,
            "image_size": self.image_size,
            "small_stem": self.small_stem,
            "features": self.features or None,
        }

    def requested(
        self, model: str, arch: str | None, image_size: int | None, small_stem: bool, features: str | None = None
    ) -> Architecture:
        """The architecture of a model, with the image size and the features that the user asked for.

        Args:
            model: what errors call the model.
            arch, image_size, small_stem, features: the user's settings; None or False if not given.

        Raises:
            HptError: the user asked for another network.
        """
        if arch not in (None, self.name):
            raise HptError(f"{model} is a {self.name}, not a {arch}", "leave arch out", setting="arch")
        if small_stem and not self.small_stem:
            raise HptError(f"{model} was trained without it", "leave it out", setting="small_stem")
        return self._replace(image_size=image_size or self.image_size, features=features or self.features)


def patch_size(name: str) -> int | None:
    """Side in pixels of the patches of a vision transformer, which its name says; None for other networks."""
    found = _PATCH.search(name)
    return int(found[1] or found[2]) if found else None


def whole_patches(name: str, image_size: int) -> int:
    """The smallest image size of at least `image_size` that is a multiple of the network's patches."""
    patch = patch_size(name) or 1
    return -(-image_size // patch) * patch
