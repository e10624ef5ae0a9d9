"""What a view takes on the processor: a random crop of an image, colours, grey, blur, flip and normalise.

    python benchmarks/views_speed.py                  # needs the extra bench for albumentations

Every path makes views of the same distribution, in its normal use, and they take turns, since machines drift.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from hpt_mlflow.augment.draws import blur_radius, draw_crops, draw_finish
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import crop_views, finish_views
from hpt_mlflow.machine import processor

STRENGTHS = Strengths()
RADIUS = blur_radius(STRENGTHS)
JITTER = (STRENGTHS.brightness, STRENGTHS.contrast, STRENGTHS.saturation, STRENGTHS.hue)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the images, over that of the views.
SIDE = 1.4

Path = Callable[[list[np.ndarray]], object]


@click.command()
@click.option("--images", default=64, show_default=True, help="In a batch.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--size", "sizes", multiple=True, type=int, default=(64, 224), show_default=True)
@click.option("--threads", default=0, help="Besides one.  [default: all processors]")
def bench(images: int, repeats: int, sizes: tuple[int, ...], threads: int) -> None:
    """Microseconds a view, by path, size and number of threads; medians."""
    most = threads or torch.multiprocessing.cpu_count()
    settings = list(itertools.product(sizes, sorted({1, most})))
    found: dict[str, list[float]] = {}
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    for size, number in settings:
        torch.set_num_threads(number)
        _limit_opencv(number)
        pictures = _pictures(images, round(SIDE * size))
        for name, seconds in _take_turns(_paths(size), pictures, repeats).items():
            found.setdefault(name, []).append(statistics.median(seconds) / images * 1e6)
    print(f"{processor()}, {versions}; batches of {images}, medians of {repeats}; microseconds a view\n")
    heads = [f"{size} px, {number} thread{'s' * (number > 1)}" for size, number in settings]
    print(f"| path | {' | '.join(heads)} |\n|---|{' ---: |' * len(heads)}")
    for name, times in found.items():
        print(f"| {name} | {' | '.join(f'{microseconds:.0f}' for microseconds in times)} |")


def _take_turns(paths: dict[str, Path], pictures: list[np.ndarray], repeats: int) -> dict[str, list[float]]:
    """Seconds of a batch, after one to warm up."""
    for path in paths.values():
        path(pictures)
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            start = time.perf_counter()
            path(pictures)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _pictures(count: int, side: int) -> list[np.ndarray]:
    """Smooth colours with some noise, uint8 (side, side, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(image).resize((side, side))) for image in coarse]
    return [np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8) for image in smooth]


def _paths(size: int) -> dict[str, Path]:
    paths: dict[str, Path] = {
        "hpt_mlflow": _ours(size, torch.device("cpu")),
        "torchvision v2, tensors": _torchvision(size, pillow=False),
        "torchvision v2, PIL images": _torchvision(size, pillow=True),
    }
    if torch.cuda.is_available():
        paths[f"hpt_mlflow, finished by {torch.cuda.get_device_name()}"] = _ours(size, torch.device("cuda"))
    try:
        paths["albumentations"] = _albumentations(size)
    except ImportError:
        click.echo("albumentations is not installed, and left out", err=True)
    return paths


def _ours(size: int, device: torch.device) -> Path:
    """Of both crops of half as many images, as a training makes them."""
    rng, mean, std = np.random.default_rng(0), torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)

    def views(pictures: list[np.ndarray]) -> None:
        half = pictures[: len(pictures) // 2]
        for crop in crop_views(half, size, AUGMENTATIONS, STRENGTHS, draw_crops(rng, len(half))):
            draws = draw_finish(rng, len(half), AUGMENTATIONS, STRENGTHS)
            finish_views(crop.to(device), draws, STRENGTHS, mean, std)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return views


def _torchvision(size: int, pillow: bool) -> Path:
    """A transform of each image, and a batch of them, as a data loader does it."""
    to_float = [v2.ToImage()] if pillow else []
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=STRENGTHS.crop_scale, antialias=True),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=STRENGTHS.color_p),
            v2.RandomGrayscale(STRENGTHS.gray_p),
            v2.RandomApply([v2.GaussianBlur(2 * RADIUS + 1, STRENGTHS.blur_sigma)], p=STRENGTHS.blur_p),
            v2.RandomHorizontalFlip(STRENGTHS.flip_p),
            *to_float,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def opened(picture: np.ndarray) -> Image.Image | torch.Tensor:
        return Image.fromarray(picture) if pillow else torch.from_numpy(picture).permute(2, 0, 1)

    return lambda pictures: torch.stack([chain(opened(picture)) for picture in pictures])


def _albumentations(size: int) -> Path:
    import albumentations as A

    tones = {
        name: (1 - strength, 1 + strength)
        for name, strength in zip(("brightness", "contrast", "saturation"), JITTER, strict=False)
    }
    chain = A.Compose(
        [
            A.RandomResizedCrop(size=(size, size), scale=STRENGTHS.crop_scale),
            A.ColorJitter(**tones, hue=(-STRENGTHS.hue, STRENGTHS.hue), p=STRENGTHS.color_p),
            A.ToGray(p=STRENGTHS.gray_p),
            A.GaussianBlur(blur_limit=0, sigma_limit=STRENGTHS.blur_sigma, p=STRENGTHS.blur_p),
            A.HorizontalFlip(p=STRENGTHS.flip_p),
            A.Normalize(mean=MEAN, std=STD),
            A.ToTensorV2(),
        ]
    )
    return lambda pictures: torch.stack([chain(image=picture)["image"] for picture in pictures])


def _limit_opencv(threads: int) -> None:
    """What albumentations computes with."""
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(threads)


if __name__ == "__main__":
    bench()
