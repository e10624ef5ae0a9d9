"""Whether the fast arithmetic learns what float32 learns: loss curves of both, beside those of other seeds.

    python benchmarks/loss_curves.py --seeds 3

Draws a figure, too, where --figure names a file.
"""

from __future__ import annotations

from itertools import combinations

import click
import numpy as np
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from one_speed import CLIPART, temporary_store

import hpt_mlflow
from hpt_mlflow.machine import processor


@click.command()
@click.option("--data", default=str(CLIPART) if CLIPART.is_dir() else "builtin:noto", show_default=True)
@click.option("--steps", default=150, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--fast", default="bfloat16", show_default=True, help="What is compared with float32.")
@click.option("--compile", "compiled", default="off", show_default=True, help="Of the fast one: on or off.")
@click.option("--figure", help="File of a figure.")
def main(data: str, steps: int, seeds: int, fast: str, compiled: str, figure: str | None) -> None:
    """Print how far apart the curves are."""
    with temporary_store():
        shared = {"data": data, "steps": steps, "batch_size": 128, "image_size": 32, "milestones": "100%"}
        plain = [curve(**shared, seed=seed, precision="float32", compile="off") for seed in range(seeds)]
        quick = [curve(**shared, seed=seed, precision=fast, compile=compiled) for seed in range(seeds)]
    same_seed = [distance(a, b) for a, b in zip(plain, quick, strict=True)]
    other_seed = [distance(a, b) for a, b in combinations(plain, 2)]
    print(f"{processor()}; {data}, resnet18, 32 px, batch 128, {steps} steps, {seeds} seeds\n")
    print("| curves of the loss | mean absolute difference (largest of all pairs) |\n|---|---|")
    print(f"| float32 and {fast}, same seed | {np.mean(same_seed):.4f} ({max(same_seed):.4f}) |")
    print(f"| float32, other seed | {np.mean(other_seed):.4f} ({max(other_seed):.4f}) |")
    ends = [np.mean([c[-10:].mean() for c in curves]) for curves in (plain, quick)]
    print(f"\nMean loss of the last 10 reports: float32 {ends[0]:.4f}, {fast} {ends[1]:.4f}")
    if figure:
        drawing = Figure(figsize=(7, 4))
        axes = drawing.subplots()
        for seed, (a, b) in enumerate(zip(plain, quick, strict=True)):
            axes.plot(a, color=f"C{seed}", label=f"seed {seed}, float32")
            axes.plot(b, color=f"C{seed}", linestyle=":", label=f"seed {seed}, {fast}")
        axes.set(xlabel="optimiser step", ylabel="InfoNCE loss")
        axes.legend()
        drawing.savefig(figure, dpi=120, bbox_inches="tight")


def curve(**settings) -> np.ndarray:
    """The loss of each report of a training."""
    result = hpt_mlflow.pretrain(**settings)
    history = MlflowClient().get_metric_history(result.run_id, "train/loss")
    return np.array([metric.value for metric in sorted(history, key=lambda metric: metric.step)])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


if __name__ == "__main__":
    main()
