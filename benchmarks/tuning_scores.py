"""All 32 augmentation subsets trained in full, scored by every objective at every rung: what a search can be judged by.

  python benchmarks/tuning_scores.py --parent PARENT --root DATA --out scores.jsonl

PARENT is a registered model, such as `hpt pretrain --data DATA/clipart` gives. Each line is one subset of one
dataset and seed. Lines that are there are not made again, and several processes can share the work (--share).
benchmarks/tuning_search.py reads them.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import torch

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives.base import make_judge
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.evaluation.scores import primary_score
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.search.setup import TrialSetup, set_up_trials
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import find_model
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.tuning.space import Space

JUDGED = ("probe", "knn", "rotation")


@click.command()
@click.option("--parent", required=True, help="Address of a registered model.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="The folder that holds the datasets.")
@click.option("--data", "names", multiple=True, default=("noto", "twemoji"), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--steps", default=256, show_default=True, help="Length of a trial.")
@click.option("--first-rung", default=4, show_default=True)
@click.option("--learning-rate", default=0.03, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--share", default="0/1", show_default=True, help="I/N: every Nth of the trainings, from the Ith on.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    parent: str, root: Path, names: tuple[str, ...], seeds: tuple[int, ...], share: str, out: Path, **length
) -> None:
    """Train and score every subset on each dataset with each seed."""
    connect()

    @lru_cache(maxsize=1)
    def setup_of(name: str, seed: int) -> TrialSetup:
        shared = {"reduction": 2, "seed": seed, "split_seed": seed, "compile": "off"}
        settings = TuneSettings(data=str(root / name), parent=parent, **_settings(length), **shared)
        return set_up_trials(settings, open_dataset(settings.data), find_model(parent, "parent", "hpt"))

    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    there = {(line["data"], line["seed"], line["subset"]) for line in done}
    first, every = map(int, share.split("/"))
    for name, seed, subset in list(_trainings(names, seeds))[first::every]:
        text = ",".join(subset) or "none"
        if (name, seed, text) in there:
            continue
        started = time.perf_counter()
        result = _score(setup_of(name, seed), subset)
        line = {"data": name, "seed": seed, "steps": length["steps"], "subset": text, **result}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name} {seed} {text}: {result['test']:.3f} {time.perf_counter() - started:.0f} s", file=sys.stderr)


def _trainings(names: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    for seed in seeds:
        for name in names:
            for subset in Space(AUGMENTATIONS).subsets(seed):
                yield name, seed, subset


def _settings(length: dict) -> dict:
    return {"trial_steps" if name == "steps" else name: value for name, value in length.items()}


def _score(setup: TrialSetup, subset: tuple[str, ...]) -> dict[str, object]:
    """Scores at each rung by objective, and top-1 on test by a linear probe at the end."""
    plan, start, dataset = replace(setup.plan, subset=subset), setup.start, setup.dataset
    trainer = Trainer(copy.deepcopy(start.backbone), start.feature_size, plan, setup.statistics, setup.device)
    batches = ViewBatches(
        setup.images, plan.batch_size, start.architecture.image_size, plan.subset, plan.strengths, plan.seed
    )
    assert setup.judge is not None
    judges = {name: make_judge(name, setup.judge.reader, setup.split, dataset.labels) for name in JUDGED}
    # What judging by validation alone would say, where so few images are cross-validated.
    judges["probe held out"] = replace(judges["probe"], rounds=((setup.split.train, setup.split.validation),))
    scores: dict[str, dict[int, float]] = {name: {} for name in (*judges, "infonce")}
    for step, metrics in trainer.train(batches, workers=0, report_every=setup.rungs[0]):
        if step in setup.rungs:
            scores["infonce"][step] = metrics["train/loss"]
            for name, judge in judges.items():
                if name != "rotation" or step == setup.rungs[-1]:
                    scores[name][step] = judge.score(trainer.backbone)
    return {**scores, "test": _test_accuracy(setup, trainer.backbone)}


def _test_accuracy(setup: TrialSetup, backbone: torch.nn.Module) -> float:
    images = Images(setup.dataset, np.arange(len(setup.dataset)), setup.start.architecture.image_size)
    reader = FeatureReader(images, setup.start.architecture.image_size, setup.statistics, setup.device)
    parts = (setup.split.train, setup.split.validation, setup.split.test)
    train, validation, test = (reader.features(backbone, part) for part in parts)
    labels = setup.dataset.labels
    assert labels is not None
    probe = fit_probe(train, labels[parts[0]], validation, labels[parts[1]], len(setup.dataset.classes))
    return primary_score(labels[parts[2]], probe.head.probabilities(test))


if __name__ == "__main__":
    main()
