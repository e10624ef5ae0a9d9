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
import torch
from training_speed import processor

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.evaluation.certainty import paired
from hpt_mlflow.evaluation.protocols import Outcome, learn_labels
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, EvaluateSettings
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.stages.task import prepare_task
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.registry import find_model


@click.command()
@click.option("--model", required=True)
@click.option("--data", required=True)
@click.option("--steps", default=5000, show_default=True, help="Steps of the paper's protocol.")
@click.option("--split-seed", default=0, show_default=True)
def main(model: str, data: str, steps: int, split_seed: int) -> None:
    """Run both, and print the table."""
    connect()
    found = find_model(model, "model", DEFAULT_MODEL_NAME)
    dataset = open_dataset(data)
    outcomes: dict[str, Outcome] = {}
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HPT_CACHE"] = cache
        for protocol in ("fast", "paper"):
            settings = EvaluateSettings(data=data, protocol=protocol, split_seed=split_seed)
            task = prepare_task(settings, dataset, found.card)
            start = time.monotonic()
            length = steps if protocol == "paper" else None
            outcomes[protocol] = learn_labels(protocol, found.backbone, task, 0, length, show_steps(protocol))
            seconds[protocol] = time.monotonic() - start
    truth = outcomes["fast"].task.part_labels.test
    answers = [outcomes[protocol].probabilities for protocol in ("paper", "fast")]
    difference = paired(truth, *answers).primary.difference
    print(f"\n{processor()}, {torch.get_num_threads()} threads")
    print(f"{found.card.arch} at {found.card.image_size} px, {data}")
    for protocol, outcome in outcomes.items():
        print(
            f"{protocol:6} validation {outcome.validation_score:.4f}  test {outcome.test_score:.4f}  "
            f"{seconds[protocol]:8.1f} s  {outcome.chosen} {outcome.reason}"
        )
    print(
        f"fast - paper on {len(truth)} test images: {100 * difference.value:+.2f} points "
        f"(95%: {100 * difference.low:+.2f} to {100 * difference.high:+.2f}); "
        f"fast takes 1/{seconds['paper'] / seconds['fast']:.0f} of the time"
    )


if __name__ == "__main__":
    main()
