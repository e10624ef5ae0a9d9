"""Images per second of a whole training stage, beside the same step on views that already lie in memory.

    make bench                                        # on clipart where it is there, else on builtin:mnist
    python benchmarks/training_speed.py --data FOLDER

The two are run in turn and compared within one run, since machines differ and drift.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import torch
from mlflow.tracking import MlflowClient

import hpt_mlflow
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.stages.device import resolve_device
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import PRESETS
from hpt_mlflow.training.precision import resolve_precision

CLIPART = Path(__file__).resolve().parents[2] / "shared" / "data" / "clipart"
# The first steps compile kernels and fill caches.
WARM_UP_REPORTS = 5


@click.command()
@click.option("--data", default=str(CLIPART) if CLIPART.is_dir() else "builtin:mnist", show_default=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--steps", default=200, show_default=True, help="Steps of one measurement.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--workers", type=int, help="Default: as the stage chooses.")
@click.option("--device", default="auto", show_default=True)
def main(
    data: str, arch: str, image_size: int, batch_size: int, steps: int, repeats: int, workers: int | None, device: str
) -> None:
    """Print the two speeds and their ratio."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    backbone, _ = build_backbone(arch, image_size)
    precision = resolve_precision("auto", backbone, image_size, batch_size, resolve_device(device))
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPT_CACHE"] = folder
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("bench", artifact_location=f"{folder}/artifacts")
        mlflow.set_experiment("bench")
        for _ in range(repeats):
            bare.append(bare_step(arch, image_size, batch_size, steps // 4, precision, device))
            whole.append(whole_stage(data, arch, image_size, batch_size, steps, precision, workers, device))
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {resolve_device(device)}")
    print(f"{arch}, {image_size} px, batch {batch_size}, {precision}, {data}; medians of {repeats}\n")
    print("| what | images/s |\n|---|---|")
    print(f"| bare step, views in memory | {statistics.median(bare):.0f} |")
    print(f"| whole training stage | {statistics.median(whole):.0f} |")
    print(f"\nwhole / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"peak memory of the process: {memory_gib:.2f} GiB")


def bare_step(arch: str, image_size: int, batch_size: int, steps: int, precision: str, device: str) -> float:
    """Images per second of the step alone."""
    target = resolve_device(device)
    backbone, feature_size = build_backbone(arch, image_size)
    plan = replace(PRESETS["quick"].plan, batch_size=batch_size, steps=10**6, precision=precision)
    trainer = Trainer(backbone, feature_size, plan, ChannelStatistics((0.5,) * 3, (0.25,) * 3), target)
    shape = (batch_size, 3, image_size, image_size)
    views = [torch.randn(shape, device=target).to(memory_format=torch.channels_last) for _ in range(2)]
    for _ in range(3):
        float(trainer.learn(*views).loss.detach())
    start = time.perf_counter()
    for _ in range(steps):
        output = trainer.learn(*views)
    float(output.loss.detach())  # waits for the device
    return steps * batch_size / (time.perf_counter() - start)


def whole_stage(
    data: str, arch: str, image_size: int, batch_size: int, steps: int, precision: str, workers: int | None, device: str
) -> float:
    """Images per second of the stage as users run it, a milestone and a training state kept half-way.

    That is far more often than by default. Opening the dataset and the first steps are left out.
    """
    result = hpt_mlflow.pretrain(
        data=data,
        arch=arch,
        image_size=image_size,
        batch_size=batch_size,
        steps=steps,
        precision=precision,
        device=device,
        milestones="50%",
        checkpoint_every=steps // 2,
        workers=workers,
    )
    history = MlflowClient().get_metric_history(result.run_id, "train/images_per_second")
    rates = [metric.value for metric in sorted(history, key=lambda metric: metric.step)][WARM_UP_REPORTS:]
    return statistics.harmonic_mean(rates)


def processor() -> str:
    """Name of the processor, and what it can do that matters here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "")
    able = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(able)})"


if __name__ == "__main__":
    main()
