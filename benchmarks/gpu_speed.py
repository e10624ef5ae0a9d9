"""How near a GPU comes to its own speed, from photographs on a disk and from small images in memory.

    python benchmarks/gpu_speed.py                      # about ten minutes on one GPU with 16 cores
    python benchmarks/gpu_speed.py --repeats 1 --photographs 256 --steps 8 --batch-size 8 --small   # tries the script

What is compared takes turns, each time in a process of its own, and each result is printed at once; ratios are medians.
"""

from __future__ import annotations

import io
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from training_speed import device, measure, median, print_ratios

from hpt_mlflow.cores import available_cores
from hpt_mlflow.machine import processor

WIDTH, HEIGHT = 500, 375
# Images per second of the bare step of a resnet18 at 64 pixels, batch 256, before there were graphs (one H200;
# docs/speed.md).
BEFORE = 9_611
# Of lightly's example, which takes seconds for each.
FEW_STEPS = 15


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--steps", default=100, show_default=True, help="Steps of one measurement of photographs.")
@click.option("--photographs", default=12_000, show_default=True, help="JPEG files to make.")
@click.option("--batch-size", default=256, show_default=True)
@click.option("--small", is_flag=True, help="Networks and images for a processor, to try the script.")
@click.option("--seconds", default=540, show_default=True, help="Begin no other measurement after this time.")
def main(repeats: int, steps: int, photographs: int, batch_size: int, small: bool, seconds: int) -> None:
    """Stages against bare steps, with the CUDA graph and without, and frozen features against inference."""
    began = time.perf_counter()
    large, side = ("resnet18", 32) if small else ("resnet50", 224)
    transformer = "timm:vit_tiny_patch16_224" if small else "timm:vit_small_patch16_224"
    with tempfile.TemporaryDirectory() as name:
        folder = make_photographs(Path(name), photographs)
        made = time.perf_counter() - began
        batch = ["--batch-size", str(batch_size)]
        photos = ["--arch", large, "--image-size", str(side), *batch, "--steps", str(steps)]
        few = ["--steps", str(min(steps, FEW_STEPS))]
        tiny = ["--arch", "resnet18", "--image-size", "64", *batch, "--steps", str(10 * steps)]
        vit = ["--arch", transformer, "--image-size", str(side), *batch, "--steps", str(steps)]
        kinds = {
            "stage from JPEG files": ["whole", "--data", str(folder), *photos],
            "bare step": ["bare", "--graph", "off", *photos],
            "bare step, graph": ["bare", *photos],
            "crops from JPEG files, without a network": ["loading", "--data", str(folder), *photos],
            "crops of decoded images, without a network": ["loading", "--cached", "--data", str(folder), *photos],
            "crops of decoded images on the GPU": ["loading", "--on-gpu", "--data", str(folder), *photos],
            "decoding on the GPU (nvJPEG), no crops": ["nvjpeg", "--data", str(folder), *photos],
            "both views": ["views", *photos],
            "both views, by torch": ["views", "--plain", *photos],
            "lightly from JPEG files": ["lightly", "--data", str(folder), *photos, *few],
            "frozen features from JPEG files": ["features", "--data", str(folder), *photos],
            "inference": ["inference", *photos],
            "small: stage": ["whole", *tiny],
            "small: stage without graph": ["whole", "--graph", "off", *tiny],
            "small: bare step": ["bare", "--graph", "off", *tiny],
            "small: bare step, graph": ["bare", *tiny],
            "small: both views": ["views", *tiny],
            "small: both views, by torch": ["views", "--plain", *tiny],
            "ViT, LoRA: stage from JPEG files": ["whole", "--data", str(folder), "--update", "lora", *vit],
            "ViT, LoRA: bare step": ["bare", "--update", "lora", *vit],
            "ViT, all weights: bare step": ["bare", *vit],
        }
        found: dict[str, list[dict[str, float] | None]] = {kind: [] for kind in kinds}
        for kind, arguments in (pair for _ in range(repeats) for pair in kinds.items()):
            if time.perf_counter() - began > seconds:
                break
            try:
                result = measure(*arguments)
                found[kind].append(result)
                print(f"{kind}: {result['images_per_second']:.0f} images/s", flush=True)
            except click.ClickException as error:
                found[kind].append(None)
                print(f"{kind}: {error.message}", flush=True)
    print(f"{processor()}, {available_cores()} cores, torch {torch.__version__}, {device()}")
    print(
        f"{photographs} JPEG files of {WIDTH} x {HEIGHT}, made in {made:.0f} s; {large} and {transformer}, {side} px; "
        f"batch {batch_size}"
    )
    print_tables(found)


def print_tables(found: dict[str, list[dict[str, float] | None]]) -> None:
    """Images per second and memory of each kind, and the ratios that are aimed at."""
    print("\n| what | images/s | peak memory, MiB | times |\n|---|---|---|---|")
    succeeded = {kind: [result for result in results if result] for kind, results in found.items()}
    for kind, results in succeeded.items():
        if results:
            figures = median(results, "images_per_second"), median(results, "peak_mib")
            print(f"| {kind} | {figures[0]:.0f} | {figures[1]:.0f} | {len(results)} |")
    print_ratios(
        found,
        (
            ("stage from JPEG files", "bare step", 0.9),
            ("small: stage", "small: bare step, graph", 0.9),
            ("small: stage", "small: stage without graph", 1),
            ("stage from JPEG files", "lightly from JPEG files", 5),
            ("frozen features from JPEG files", "inference", 0.8),
            ("both views", "both views, by torch", 1),
            ("small: both views", "small: both views, by torch", 1),
            ("ViT, LoRA: stage from JPEG files", "ViT, LoRA: bare step", 0.9),
        ),
    )
    if stages := succeeded["small: stage"]:
        print(f"\nsmall: stage / the bare step before: {median(stages, 'images_per_second') / BEFORE:.2f}, at least 4")
    memory = ("ViT, LoRA: bare step", "ViT, all weights: bare step", 0.6)
    print_ratios(found, (memory,), figure="peak_mib", bound="peak memory, at most")


def make_photographs(folder: Path, count: int) -> Path:
    """JPEG files with the size and the detail of photographs, in 16 folders."""
    with ProcessPoolExecutor(available_cores()) as pool:
        for number, data in enumerate(pool.map(photograph, range(count), chunksize=32)):
            part = folder / str(number % 16)
            part.mkdir(exist_ok=True)
            (part / f"{number}.jpg").write_bytes(data)
    return folder


def photograph(seed: int) -> bytes:
    """Noise of all sizes, as most pictures have it; about 40 KB."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells in (4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    picture *= 255 / picture.max()
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


if __name__ == "__main__":
    main()
