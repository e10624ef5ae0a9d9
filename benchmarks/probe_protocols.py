"""The fast protocol of evaluation beside the paper's, on the same model: how far apart, and how much sooner.

    python benchmarks/probe_protocols.py --model models:/hpt/1 --data FOLDER

The cache of features is empty at the start, so that fast computes them. Both protocols use the same split; the
difference on its test images comes with the 95% interval of a paired bootstrap.
"""

from __future__ import annotations

import os
import tempfile
import time

import click
import numpy as np
import torch

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.evaluation.certainty import paired
from hpt_mlflow.evaluation.protocols.base import learn_labels
from hpt_mlflow.evaluation.protocols.paper import PaperProbeSettings, fit_paper_probe
from hpt_mlflow.machine import processor
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, EvaluateSettings
from hpt_mlflow.stages.evaluation.task import prepare_task
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import find_model


@click.command()
@click.option("--model", required=True)
@click.option("--data", required=True)
@click.option("--steps", default=5000, show_default=True, help="Steps of the paper's protocol.")
@click.option("--learning-rate", default=30.0, show_default=True, help="Of the paper's protocol.")
@click.option("--split-seed", default=0, show_default=True)
def main(model: str, data: str, steps: int, learning_rate: float, split_seed: int) -> None:
    """Run both, and print the table."""
    connect()
    found = find_model(model, "model", DEFAULT_MODEL_NAME)
    dataset = open_dataset(data)
    tasks = {
        protocol: prepare_task(
            EvaluateSettings(data=data, protocol=protocol, split_seed=split_seed), dataset, found.card
        )
        for protocol in ("fast", "paper")
    }
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HPT_CACHE"] = cache
        start = time.monotonic()
        fast = learn_labels("fast", found.backbone, tasks["fast"], 0)
        fast_seconds = time.monotonic() - start
        start = time.monotonic()
        settings = PaperProbeSettings(steps, learning_rate=learning_rate)
        backbone = found.backbone.to(tasks["paper"].reader.device)
        paper = fit_paper_probe(backbone, tasks["paper"], settings, 0, show_steps("paper"))
        paper_seconds = time.monotonic() - start
    truth = fast.task.part_labels.test
    difference = paired(truth, paper.probabilities, fast.probabilities).primary.difference
    print(f"\n{processor()}, {torch.get_num_threads()} threads")
    print(f"{found.card.architecture.name} at {found.card.architecture.image_size} px, {data}")
    print(f"mean length of the features: {np.linalg.norm(paper.features.train, axis=1).mean():.1f}")
    scores = "{:6} validation {:.4f}  test {:.4f}  {:8.1f} s  {}"
    print(scores.format("fast", fast.validation_score, fast.test_score, fast_seconds, fast.warning))
    chosen = f"step {paper.step} of {steps} at learning rate {learning_rate:g}  {paper.warning}"
    print(scores.format("paper", paper.validation_score, paper.test_score, paper_seconds, chosen))
    print(
        f"fast - paper on {len(truth)} test images: {100 * difference.value:+.2f} points "
        f"(95%: {100 * difference.low:+.2f} to {100 * difference.high:+.2f}); "
        f"fast takes 1/{paper_seconds / fast_seconds:.0f} of the time"
    )


if __name__ == "__main__":
    main()
