"""Frozen features of images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.augment.color import normalise, white
from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.augment.in_batches import send
from hpt_mlflow.cores import available_cores
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.squares import square_batches
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.models.bfloat16 import has_native_bfloat16
from hpt_mlflow.models.randomness import seeded
from hpt_mlflow.pace import MOST_AHEAD, Pace


def prepare(
    images: list[np.ndarray], image_size: int, statistics: ChannelStatistics, resize_to: int | None = None
) -> Tensor:
    """Centre crops as input of a network.

    Args:
        images: N decoded images, uint8 or uint16 (height, width, channels), of any sizes.
        resize_to: pixels of the shorter side from which the crop is cut; None for image_size, which shows all of it.

    Returns:
        float32 (N, channels, image_size, image_size), normalised.
    """
    squares = [centre_crop(image, image_size, resize_to) for image in images]
    return to_input(squares, statistics, torch.device("cpu"))


def to_input(squares: list[np.ndarray], statistics: ChannelStatistics, device: torch.device) -> Tensor:
    """Squares as input of a network on a device; they are sent as they are, and normalised there.

    Args:
        squares: uint8 or uint16 (size, size, channels).

    Returns:
        float32 (N, channels, size, size), channels_last.
    """
    shape, dtype = (len(squares), *squares[0].shape), getattr(torch, squares[0].dtype.name)
    # From where a GPU reads by itself.
    pixels = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.stack(squares, out=pixels.numpy())
    sent = pixels.to(device, non_blocking=device.type == "cuda").permute(0, 3, 1, 2)
    mean, std = (send(np.array(values, np.float32), device) for values in (statistics.mean, statistics.std))
    return normalise(sent.float() / white(pixels), mean, std)


def feature_precision(precision: str, device: torch.device) -> str:
    """Precision of frozen features: for `auto`, bfloat16 on a GPU that has it in hardware, and else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and has_native_bfloat16(device) else "float32"


class FrozenNetwork:
    """A copy of a backbone in evaluation mode, in channels-last memory format.

    Args:
        backbone: float32 (N, channels, H, W) to (N, ...); left exactly as it is.

    Attributes:
        network: the copy.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.network = copy.deepcopy(backbone).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(
        self, batch: Tensor, precision: str = "float32", after_part: Callable[[], object] = lambda: None
    ) -> Tensor:
        """Features of images on the device, float32 (N, feature size); in halves if it has no memory for all at once.

        Args:
            precision: float32 or bfloat16. With bfloat16, operations that are sensitive to rounding are still done in
                float32 (torch.autocast).
            after_part: called when the features of all images, or of a part of them, have been computed.

        Raises:
            HptError: there is no memory for a single image.
        """
        found = None
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            try:
                found = self.network(batch).flatten(1).float()
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    problem = f"{batch.device} has no memory for features of a single image"
                    raise HptError(problem, "use device=cpu, or free some", setting="device") from error
        if found is None:
            return torch.cat([self.features(half, precision, after_part) for half in batch.chunk(2)])
        after_part()
        return found


@dataclass(frozen=True)
class FeatureReader:
    """How features of a dataset's images are computed.

    Attributes:
        image_size: side of the centre crops in pixels.
        statistics: to normalise the images with.
        batch_size: images per forward pass.
        threads: that decode images, or processes (see `square_batches`); None for what suits the machine.
        resize_to: see `prepare`.
        precision: of frozen features, float32 or bfloat16.
    """

    images: Images
    image_size: int
    statistics: ChannelStatistics
    device: torch.device
    batch_size: int = 256
    threads: int | None = None
    resize_to: int | None = None
    precision: str = "float32"

    def features(self, backbone: nn.Module, indices: np.ndarray) -> np.ndarray:
        """Features of the images at `indices` by a backbone on the device, in evaluation mode.

        A copy computes them; the backbone itself is left exactly as it is. Images that have become unreadable are
        reported to `images`.

        Returns:
            float32 (N, feature size); zero for an unreadable image, which is then nobody's neighbour.

        Raises:
            HptError: too many images have become unreadable.
        """
        network, computed, readable = FrozenNetwork(backbone), [], []
        pace, ahead = Pace(self.device), self.device.type == "cuda"
        for batch, positions in self.batches(indices):
            # A GPU would have nothing to do while each batch is waited for; its copies are in pinned memory.
            computed.append(network.features(batch, self.precision).to("cpu", non_blocking=ahead))
            pace.end_step()
            if ahead and len(computed) > MOST_AHEAD:
                computed[-1 - MOST_AHEAD] = computed[-1 - MOST_AHEAD].clone()
            readable += positions
        pace.catch_up()
        if not computed:
            raise HptError(
                f"none of {len(indices)} images of {self.images.dataset.name} can be read any more", setting="data"
            )
        features = torch.cat(computed)
        return torch.zeros(len(indices), features.shape[1]).index_copy_(0, torch.tensor(readable), features).numpy()

    @torch.no_grad()
    def with_refreshed_batch_norm(self, backbone: nn.Module, indices: np.ndarray) -> nn.Module:
        """A copy of a backbone on the device, with BatchNorm's statistics averaged over the images at `indices`."""
        network = copy.deepcopy(backbone).to(self.device)
        layers = batch_norms(network)
        momentum = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        network.train()
        for batch, _ in self.batches(indices):
            # BatchNorm may not be able to measure the variance of a single image.
            if len(batch) > 1:
                # Dropout is random in training mode.
                with seeded(0, self.device):
                    network(batch)
        # A training that starts from here forgets these images, as that of any other network does.
        for layer, before in zip(layers, momentum, strict=True):
            layer.momentum = before
        return network

    def batches(self, indices: np.ndarray) -> Iterator[tuple[Tensor, list[int]]]:
        """The readable images as input of a network, on the device, and their positions in `indices`.

        The next batches are decoded meanwhile.
        """
        size, start = self.image_size**2 * self.images.pixels.pixel_bytes, 0
        for squares in square_batches(self._square, indices.tolist(), self.batch_size, size, self.device, self.threads):
            unreadable = {int(indices[start + i]): why for i, why in enumerate(squares) if isinstance(why, str)}
            self.images.report_unreadable(unreadable.items())
            readable = {start + i: square for i, square in enumerate(squares) if not isinstance(square, str)}
            start += len(squares)
            if readable:
                yield to_input(list(readable.values()), self.statistics, self.device), list(readable)

    def pool(self) -> ThreadPoolExecutor:
        """The threads that decode images."""
        return ThreadPoolExecutor(max(1, available_cores() if self.threads is None else self.threads))

    def read(self, index: int) -> np.ndarray | str:
        """An image, (height, width, channels), or why it cannot be read any more."""
        try:
            return self.images[index]
        except UnreadableImageError as error:
            return str(error)

    def _square(self, index: int) -> np.ndarray | str:
        """The centre crop of an image, (size, size, channels), or why it cannot be read any more."""
        image = self.read(index)
        return image if isinstance(image, str) else centre_crop(image, self.image_size, self.resize_to)
