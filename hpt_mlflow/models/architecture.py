"""Which network a backbone is, as one value."""

from __future__ import annotations

from typing import NamedTuple

from hpt_mlflow.errors import HptError

# How the name of a network starts that was passed as an object.
MODULE = "module:"


class Architecture(NamedTuple):
    """A network and the images that it takes.

    Attributes:
        name: a classification network of torchvision, or `timm:` and the name of a network of timm.
        image_size: side of the square images, in pixels.
        small_stem: for ResNets, a 3 x 3 convolution of stride 1 without max pooling in front (He et al., CVPR 2016,
            section 4.2), for images of about 32 pixels.
        channels: of the images.
    """

    name: str
    image_size: int
    small_stem: bool = False
    channels: int = 3

    def __str__(self) -> str:
        stem = " with the small stem" if self.small_stem else ""
        channels = "" if self.channels == 3 else f" and {self.channels} channels"
        return f"{self.name}{stem} at {self.image_size} px{channels}"

    def as_settings(self) -> dict[str, str | int | bool]:
        """The three settings that name it, as users write them and files keep them."""
        return {"arch": self.name, "image_size": self.image_size, "small_stem": self.small_stem}

    def requested(self, model: str, arch: str | None, image_size: int | None, small_stem: bool) -> Architecture:
        """The architecture of a model, with the image size that the user asked for.

        Args:
            model: what errors call the model.
            arch, image_size, small_stem: the user's settings; None or False if not given.

        Raises:
            HptError: the user asked for another network.
        """
        if arch not in (None, self.name):
            raise HptError(f"{model} is a {self.name}, not a {arch}", "leave arch out", setting="arch")
        if small_stem and not self.small_stem:
            raise HptError(f"{model} was trained without it", "leave it out", setting="small_stem")
        return self._replace(image_size=image_size or self.image_size)
