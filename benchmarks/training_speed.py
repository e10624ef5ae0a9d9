"""How near a training comes to the speed of its bare step, and what makes it faster: ratios from one run.

    make bench                                        # on clipart where it is there, else on builtin:noto
    python benchmarks/training_speed.py --data FOLDER --repeats 5

What is compared takes turns, each time in a process of its own, since machines differ and drift.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click
import torch

from hpt_mlflow.machine import processor

ONE_SPEED = Path(__file__).with_name("one_speed.py")
BACKBONES = ("resnet18", "resnet50", "shufflenet_v2_x0_5", "mobilenet_v3_small")
# Side in pixels, and images in a batch that a small machine can hold.
SIZES = {32: 128, 64: 128, 224: 32}


@click.group()
def bench() -> None:
    """Speed of trainings."""


@bench.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--steps", default=30, show_default=True, help="Steps of one measurement.")
@click.option("--data", help="Default: clipart, or builtin:noto where it is not there.")
@click.option("--without", multiple=True, help="Leave a comparison out: lightly, processes.")
def ratios(repeats: int, steps: int, data: str | None, without: tuple[str, ...]) -> None:
    """The whole stage against the bare step, lightly, HPT-BN against HPT, two processes against one."""
    where = ["--data", data] if data else []
    kinds = {
        "bare step, views in memory": ["bare"],
        "whole training stage": ["whole", "--steps", str(4 * steps), *where],
        "bare step of HPT-BN": ["bare", "--update", "bn"],
        "whole stage, 2 processes": ["whole", "--nproc", "2", "--steps", str(4 * steps), *where],
        "lightly's MoCo example": ["lightly", *where],
    }
    left_out = {"lightly": "lightly's MoCo example", "processes": "whole stage, 2 processes"}
    for name in without:
        del kinds[left_out[name]]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, arguments in kinds.items():
            found[kind].append(measure("--steps", str(steps), *arguments))
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device()}")
    print(f"resnet18, 64 px, batch 128; medians of {repeats}\n")
    print("| what | images/s | peak memory, MiB |\n|---|---|---|")
    for kind, results in found.items():
        print(f"| {kind} | {median(results, 'images_per_second'):.0f} | {median(results, 'peak_mib'):.0f} |")
    print_ratios(
        found,
        (
            ("whole training stage", "bare step, views in memory", 0.95),
            ("whole training stage", "lightly's MoCo example", 2.0),
            ("bare step of HPT-BN", "bare step, views in memory", 1.6),
            ("whole stage, 2 processes", "whole training stage", 0.9),
        ),
    )


@bench.command()
@click.option("--steps", default=10, show_default=True)
@click.option("--precision", default="auto", show_default=True)
def backbones(steps: int, precision: str) -> None:
    """Images per second and peak memory of the bare step by backbone and size, HPT and HPT-BN."""
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device()}, {precision}\n")
    print("| backbone | pixels | batch | HPT, images/s | MiB | HPT-BN, images/s | MiB |\n|---|---|---|---|---|---|---|")
    for arch in BACKBONES:
        for size, batch in SIZES.items():
            shape = ["--arch", arch, "--image-size", str(size), "--batch-size", str(batch), "--precision", precision]
            results = [measure("bare", *shape, "--steps", str(steps), "--update", update) for update in ("all", "bn")]
            cells = [f"{r['images_per_second']:.0f} | {r['peak_mib']:.0f}" for r in results]
            print(f"| {arch} | {size} | {batch} | {' | '.join(cells)} |", flush=True)


def measure(*arguments: str) -> dict[str, float]:
    """One call of one_speed.py."""
    finished = subprocess.run([sys.executable, str(ONE_SPEED), *arguments], check=False, capture_output=True, text=True)
    if finished.returncode:
        raise click.ClickException(f"{' '.join(arguments)}: {last_words(finished)}")
    result: dict[str, float] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result


def last_words(finished: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, as far as it has said."""
    return [f"exit code {finished.returncode}", *finished.stderr.strip().splitlines()][-1]


def print_ratios(
    found: Mapping[str, Sequence[dict[str, float] | None]],
    aims: Iterable[tuple[str, str, float]],
    figure: str = "images_per_second",
    bound: str = "at least",
) -> None:
    """How a figure of one kind compares with that of another in the same repetition, and what is aimed at.

    Args:
        found: the results of each repetition; None for one that failed.
    """
    print(f"\n| ratio | median | range | {bound} |\n|---|---|---|---|")
    for above, below, aim in aims:
        pairs = zip(found.get(above, []), found.get(below, []), strict=False)
        quotients = [one[figure] / other[figure] for one, other in pairs if one and other]
        if quotients:
            middle, low, high = statistics.median(quotients), min(quotients), max(quotients)
            print(f"| {above} / {below} | **{middle:.3f}** | {low:.3f} to {high:.3f} | {aim} |")


def median(results: list[dict[str, float]], name: str) -> float:
    return statistics.median(result[name] for result in results)


def device() -> str:
    """What it ran on, where that is a GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    bench()
