"""All 32 augmentation subsets trained in full, scored by every objective at every rung: what a search can be judged by.

  python benchmarks/tuning_scores.py twemoji --seed 0 --out scores.jsonl

Each line is one subset of one dataset and seed. Lines that are there are not made again. benchmarks/tuning_search.py
reads them. The parent is trained first, on clipart, and kept beside --out.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives import make_judge
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.evaluation.scores import primary_score
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.bench import Bench, lay_bench
from hpt_mlflow.tracking.registry import find_model
from hpt_mlflow.training.loop import Trainer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
JUDGED = ("probe", "knn", "rotation")


@click.command()
@click.argument("name", type=click.Choice(["noto", "twemoji"]))
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=96, show_default=True, help="Length of a trial.")
@click.option("--first-rung", default=6, show_default=True)
@click.option("--learning-rate", default=0.06, show_default=True)
@click.option("--batch-size", default=96, show_default=True)
@click.option("--arch", default="shufflenet_v2_x0_5", show_default=True)
@click.option("--parent-steps", default=600, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    name: str,
    seed: int,
    steps: int,
    first_rung: int,
    learning_rate: float,
    batch_size: int,
    arch: str,
    parent_steps: int,
    out: Path,
) -> None:
    """Train and score every subset on a dataset."""
    parent = _parent(out.resolve().parent, arch, parent_steps)
    settings = TuneSettings(
        data=str(DATA / name),
        parent=parent,
        trial_steps=steps,
        first_rung=first_rung,
        reduction=4,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        split_seed=seed,
        compile="off",
    )
    dataset = open_dataset(settings.data)
    bench = lay_bench(settings, dataset, find_model(parent, "parent", "hpt"))
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    there = {(line["data"], line["seed"], line["steps"], line["subset"]) for line in done}
    for subset in bench.space.subsets(seed):
        text = ",".join(subset) or "none"
        if (name, seed, steps, text) in there:
            continue
        started = time.perf_counter()
        result = _score(bench, subset)
        line = {"data": name, "seed": seed, "steps": steps, "subset": text, **result}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name} {seed} {text}: {result['test']:.3f} {time.perf_counter() - started:.0f} s", file=sys.stderr)


def _parent(folder: Path, arch: str, steps: int) -> str:
    """The registered Base, trained on clipart once."""
    import mlflow

    import hpt_mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    kept = folder / "parent.txt"
    if not kept.exists():
        made = hpt_mlflow.pretrain(
            data=str(DATA / "clipart"),
            arch=arch,
            image_size=32,
            steps=steps,
            batch_size=128,
            compile="off",
        )
        kept.write_text(made.model_uri)
    return kept.read_text()


def _score(bench: Bench, subset: tuple[str, ...]) -> dict[str, object]:
    """Scores at each rung by objective, and top-1 on test by a linear probe at the end."""
    plan, start, dataset = replace(bench.plan, subset=subset), bench.start, bench.dataset
    trainer = Trainer(copy.deepcopy(start.backbone), start.feature_size, plan, bench.statistics, bench.device)
    batches = ViewBatches(bench.images, plan.batch_size, start.image_size, plan.subset, plan.strengths, plan.seed)
    assert bench.judge is not None
    reader = bench.judge.reader
    judges = {name: make_judge(name, reader, bench.split, dataset.labels) for name in JUDGED}
    scores: dict[str, dict[int, float]] = {name: {} for name in (*JUDGED, "infonce")}
    for step, metrics in trainer.train(batches, bench.workers, bench.rungs[0]):
        if step in bench.rungs:
            scores["infonce"][step] = metrics["train/loss"]
            for name, judge in judges.items():
                scores[name][step] = judge.score(trainer.moco.backbone)
    return {**scores, "test": _test_accuracy(bench, trainer.moco.backbone)}


def _test_accuracy(bench: Bench, backbone: torch.nn.Module) -> float:
    images = Images(bench.dataset, np.arange(len(bench.dataset)), bench.start.image_size)
    reader = FeatureReader(images, bench.start.image_size, bench.statistics, bench.device)
    parts = (bench.split.train, bench.split.validation, bench.split.test)
    train, validation, test = (reader.features(backbone, part) for part in parts)
    labels = bench.dataset.labels
    assert labels is not None
    probe = fit_probe(train, labels[parts[0]], validation, labels[parts[1]], len(bench.dataset.classes))
    return primary_score(labels[parts[2]], probe.head.probabilities(test))


if __name__ == "__main__":
    main()
