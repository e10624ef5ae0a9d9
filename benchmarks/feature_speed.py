"""How fast frozen features are computed, and what each part of it brings: a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/feature_speed.py
    python benchmarks/feature_speed.py --image-size 224 --batch-size 64 --arch resnet50

What is compared takes turns, since machines drift; the fastest time of each counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor, nn
from training_speed import BACKBONES, device

from hpt_mlflow.evaluation.features import FrozenNetwork
from hpt_mlflow.machine import processor
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone

KINDS = ("plain", "channels last", "+ bfloat16")


@click.command()
@click.option("--arch", multiple=True, default=BACKBONES, show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=256, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(arch: tuple[str, ...], image_size: int, batch_size: int, repeats: int) -> None:
    """Images per second of the forward pass, images in memory."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device()}")
    print(f"{image_size} px, batch {batch_size}, images/s; the best of {repeats}\n")
    print(f"| backbone | {' | '.join(KINDS)} | gain |\n|---|{'---|' * len(KINDS)}---|")
    for name in arch:
        torch.manual_seed(0)
        backbone = build_backbone(Architecture(name, image_size))[0].to(place).eval()
        images = torch.randn(batch_size, 3, image_size, image_size, device=place)
        ways = ways_to_compute(backbone, images)
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for way in ways.values():
            once(way)
        for _ in range(repeats):
            for kind, way in ways.items():
                seconds[kind].append(once(way))
        rates = [batch_size / min(seconds[kind]) for kind in KINDS]
        print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in rates)} | {max(rates) / rates[0]:.1f} |", flush=True)


def ways_to_compute(backbone: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """By kind, what gives the features of the images."""
    stand_last = images.to(memory_format=torch.channels_last)
    frozen = FrozenNetwork(backbone)
    ways: tuple[Callable[[], Tensor], ...] = (
        lambda: backbone(images),
        lambda: frozen.features(stand_last),
        lambda: frozen.features(stand_last, "bfloat16"),
    )
    return dict(zip(KINDS, ways, strict=True))


@torch.inference_mode()
def once(way: Callable[[], Tensor]) -> float:
    """Seconds of one pass; copying waits for the device."""
    start = time.perf_counter()
    way().cpu()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
