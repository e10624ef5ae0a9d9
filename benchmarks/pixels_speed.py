"""What depth and bands cost: views and features per byte of pixels, compared with 8-bit RGB.

    python benchmarks/pixels_speed.py

One thread, processor time, so that other work on the machine counts little; formats take turns.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import torch

from hpt_mlflow.augment.draws import draw_crops, draw_finish
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import crop_views, finish_views
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.evaluation.features import prepare
from hpt_mlflow.machine import processor

FORMATS = [(3, np.uint8), (3, np.uint16), (4, np.uint8), (4, np.uint16), (13, np.uint8), (13, np.uint16)]
# Of the images, over that of the views.
SIDE = 1.4


@click.command()
@click.option("--images", default=32, show_default=True, help="In a batch.")
@click.option("--repeats", default=7, show_default=True)
@click.option("--size", default=64, show_default=True)
def bench(images: int, repeats: int, size: int) -> None:
    """Bytes of pixels per second relative to 8-bit RGB, by format; medians of the ratios of each turn."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    side = round(SIDE * size)
    pictures = {
        (channels, dtype): list(rng.integers(0, np.iinfo(dtype).max + 1, (images, side, side, channels), dtype=dtype))
        for channels, dtype in FORMATS
    }
    seconds: dict[tuple[int, type], list[tuple[float, float]]] = {key: [] for key in pictures}
    for turn in range(repeats + 1):
        for key, batch in pictures.items():
            measured = _seconds(batch, size)
            if turn:  # the first compiles
                seconds[key].append(measured)
    print(f"{processor()}, torch {torch.__version__}; batches of {images}, {size} px, {repeats} turns\n")
    print("| pixels | views | input of a network |\n|---|---:|---:|")
    for (channels, dtype), found in seconds.items():
        size_ratio = channels * np.dtype(dtype).itemsize / 3
        ratios = [
            statistics.median(size_ratio * rgb[i] / own[i] for rgb, own in zip(seconds[FORMATS[0]], found, strict=True))
            for i in (0, 1)
        ]
        print(f"| {channels} channels of {8 * np.dtype(dtype).itemsize} bits | {ratios[0]:.2f} | {ratios[1]:.2f} |")


def _seconds(batch: list[np.ndarray], size: int) -> tuple[float, float]:
    """Of two views of each image, and of the input of a network for evaluation."""
    channels = batch[0].shape[2]
    rng, strengths = np.random.default_rng(1), Strengths()
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    crops, finish = draw_crops(rng, len(batch)), draw_finish(rng, len(batch), AUGMENTATIONS, strengths)
    began = time.process_time()
    for crop in crop_views(batch, size, AUGMENTATIONS, strengths, crops):
        finish_views(crop, finish, strengths, mean, std)
    viewed = time.process_time()
    prepare(batch, size, ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist())))
    return viewed - began, time.process_time() - viewed


if __name__ == "__main__":
    bench()
