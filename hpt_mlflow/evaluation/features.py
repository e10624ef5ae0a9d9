"""Frozen features of images."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.augment.views import normalise
from hpt_mlflow.data.decode import UnreadableImageError
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.models.randomness import seeded


def prepare(
    images: list[np.ndarray], image_size: int, statistics: ChannelStatistics, resize_to: int | None = None
) -> Tensor:
    """Centre crops as a network wants them.

    Args:
        images: N decoded images, uint8 (height, width, 3), of any sizes.
        resize_to: pixels of the shorter side from which the crop is cut; None for image_size, so that all of it shows.

    Returns:
        float32 (N, 3, image_size, image_size), normalised.
    """
    squares = np.stack([centre_crop(image, image_size, resize_to) for image in images])
    batch = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
    return normalise(batch, torch.tensor(statistics.mean), torch.tensor(statistics.std))


class FrozenNetwork:
    """A copy of a backbone in evaluation mode, whose channels stand last.

    Args:
        backbone: float32 (N, 3, H, W) to (N, ...); left exactly as it is.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._network = copy.deepcopy(backbone).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(self, batch: Tensor, precision: str = "float32") -> Tensor:
        """Features of images on the device, float32 (N, feature size).

        Args:
            precision: float32 or bfloat16. With bfloat16, what is sensitive to rounding is still done in float32
                (torch.autocast).
        """
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return self._network(batch).flatten(1).float()


@dataclass(frozen=True)
class FeatureReader:
    """How features of a dataset's images are computed.

    Attributes:
        image_size: side of the centre crops in pixels.
        statistics: what they are normalised with.
        batch_size: images in a forward pass.
        threads: that decode images; None for one a processor.
        resize_to: see `prepare`.
        precision: of frozen features, float32 or bfloat16; `choose_feature_precision` finds the fastest that is safe.
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
        """Features of the images at `indices` by a backbone on the device, as it is in evaluation mode.

        A copy computes them; the backbone itself is left exactly as it is. Images that cannot be read any more are
        reported to `images`.

        Returns:
            float32 (N, feature size); zero for an image that cannot be read, which is then nobody's neighbour.

        Raises:
            HptError: too many images cannot be read any more.
        """
        network, features, read = FrozenNetwork(backbone), [], []
        for batch, positions in self.batches(indices):
            features.append(network.features(batch, self.precision).cpu())
            read += positions
        if not features:
            raise HptError(f"data: none of {len(indices)} images of {self.images.dataset.name} can be read any more")
        found = torch.cat(features)
        return torch.zeros(len(indices), found.shape[1]).index_copy_(0, torch.tensor(read), found).numpy()

    @torch.no_grad()
    def refresh_batch_norm(self, backbone: nn.Module, indices: np.ndarray) -> None:
        """Set BatchNorm's running statistics to their mean over the images at `indices`; in place."""
        layers = batch_norms(backbone)
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        backbone.train()
        for batch, _ in self.batches(indices):
            # One image alone may have no variance that BatchNorm could measure.
            if len(batch) > 1:
                # Dropout draws where a network is in training mode.
                with seeded(0, self.device):
                    backbone(batch)

    def batches(self, indices: np.ndarray) -> Iterator[tuple[Tensor, list[int]]]:
        """The images that can be read, as a network wants them on the device, and their positions in `indices`."""
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) if self.threads is None else self.threads)) as pool:
            for start in range(0, len(indices), self.batch_size):
                chosen = indices[start : start + self.batch_size].tolist()
                results = list(pool.map(self._read, chosen))
                self.images.report_unreadable(
                    (i, r) for i, r in zip(chosen, results, strict=True) if isinstance(r, str)
                )
                decoded = {start + i: r for i, r in enumerate(results) if not isinstance(r, str)}
                if decoded:
                    batch = prepare(list(decoded.values()), self.image_size, self.statistics, self.resize_to)
                    yield batch.to(self.device, memory_format=torch.channels_last), list(decoded)

    def _read(self, index: int) -> np.ndarray | str:
        """The image, or why there is none any more."""
        try:
            return self.images[index]
        except UnreadableImageError as error:
            return str(error)
