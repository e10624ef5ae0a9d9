"""Which judge picks the milestone that test labels would pick: all judges on the same adaptations.

    python benchmarks/judges.py run --root DATA --target twemoji --weights efficientnet-lite0 --seed 0 --to judges.jsonl
    python benchmarks/judges.py table judges.jsonl

`run` adapts once, and appends a line with all scores of the parent (step 0) and of each milestone. `table` compares the
judges over all lines: they may come from many targets, bases, presets and seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import kept_channel_statistics
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.evaluation.objectives import OBJECTIVES, has_judge
from hpt_mlflow.evaluation.objectives.base import make_judge
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.settings import AdaptSettings
from hpt_mlflow.stages.training.milestones import parse_milestones
from hpt_mlflow.stages.training.resolve import resolve_training
from hpt_mlflow.stages.training.start import find_weights, start_from_weights
from hpt_mlflow.training.arithmetic import choose_precision
from hpt_mlflow.training.loop import Trainer

JUDGES = [name for name in OBJECTIVES if has_judge(name)]
# What a judge should foresee.
TRUTHS = ("probe_test", "knn_test")


@click.group()
def judges() -> None:
    """Judges of milestones."""


@judges.command()
@click.option("--root", required=True, help="Folder that --target starts from.")
@click.option("--target", required=True)
@click.option("--weights", default="efficientnet-lite0", show_default=True, help="As for hpt pretrain.")
@click.option("--arch")
@click.option("--image-size", default=64, show_default=True)
@click.option("--method", default="moco", show_default=True)
@click.option("--preset", default="gentle", show_default=True)
@click.option("--steps", default=600, show_default=True)
@click.option("--milestones", default="10%,25%,50%,75%", show_default=True)
@click.option("--examples", default=1000, show_default=True, help="Most examples of a judge.")
@click.option("--seed", default=0, show_default=True)
@click.option("--to", type=click.Path(path_type=Path), required=True)
def run(
    root: str,
    target: str,
    weights: str,
    arch: str | None,
    image_size: int,
    milestones: str,
    examples: int,
    to: Path,
    **own,
) -> None:
    """Adapt published weights to a target, and score the parent and every milestone by labels and by each judge."""
    settings = AdaptSettings(data=target, root=root, **own)
    dataset = open_dataset(target, root)
    split = dataset.split(settings.split_seed)
    start = start_from_weights(find_weights(weights, arch, image_size, small_stem=False))
    plan = resolve_training(settings, dataset.name, len(split.seen))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = replace(plan, precision=choose_precision("auto", device))
    side = smallest_useful_side(image_size, plan.strengths.crop_scale)
    seen, labelled = (Images(dataset, part, side, cache_gib=4) for part in (split.seen, split.labelled))
    statistics = kept_channel_statistics(seen)
    trainer = Trainer(start.backbone, start.feature_size, plan, statistics, device)
    batches = ViewBatches(
        seen, plan.batch_size, image_size, plan.subset, plan.strengths, plan.seed, views=trainer.method.views
    )
    reader = FeatureReader(labelled, image_size, statistics, device)
    within = [make_judge(name, reader, split, dataset.labels, examples) for name in JUDGES]
    due, line = parse_milestones(milestones, plan.steps), {"base": weights, "target": target, **own}
    with to.open("a") as file:
        for step in reached(trainer, batches, due):
            scores = {name: judge.score(trainer.backbone) for name, judge in zip(JUDGES, within, strict=True)}
            scores |= by_labels(reader, trainer.backbone, split, dataset.labels, len(dataset.classes))
            file.write(json.dumps(line | {"step": step} | scores) + "\n")
            file.flush()
            print(step, {name: round(score, 4) for name, score in scores.items()}, flush=True)


def reached(trainer: Trainer, batches: ViewBatches, due: frozenset[int]) -> Iterator[int]:
    """Step 0, and each milestone when the training has reached it."""
    yield 0
    for step, _ in trainer.train(batches, workers=0, report_every=50):
        if step in due:
            yield step


def by_labels(
    reader: FeatureReader, backbone: nn.Module, split: Split, labels: np.ndarray, classes: int
) -> dict[str, float]:
    """Accuracy on the test part."""
    train, validation, test = (reader.features(backbone, part) for part in (split.train, split.validation, split.test))
    known, asked, truth = labels[split.train], labels[split.validation], labels[split.test]
    probe = fit_probe(train, known, validation, asked, classes)
    answers = {
        "probe_test": probe.head.probabilities(test).argmax(axis=1),
        "knn_test": nearest_neighbour_classes(train, known, test),
    }
    return {name: float((answer == truth).mean()) for name, answer in answers.items()}


@judges.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
def table(files: tuple[Path, ...]) -> None:
    """For each judge: Spearman's correlation with the truth within a training, and what choosing by it gains."""
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    trainings = defaultdict(list)
    for line in lines:
        key = tuple(str(value) for name, value in line.items() if name not in ("step", *JUDGES, *TRUTHS))
        trainings[key].append(line)
    print(f"{len(trainings)} trainings of {len({key[:2] for key in trainings})} pairs of base and target\n")
    print("| judge | truth | Spearman | gain over the parent | of the best gain | runs over 1 point below the parent |")
    print("|---|---|---|---|---|---|")
    for truth in TRUTHS:
        for judge, name in (*((judge, judge) for judge in JUDGES), ("step", "the last step")):
            print(f"| {name} | {truth} | {summary(trainings.values(), judge, truth)} |")


def summary(trainings, judge: str, truth: str) -> str:
    """A row of the table, means over trainings, in points."""
    correlations, gains, best = [], [], []
    for training in trainings:
        scores, truths = (np.array([line[name] for line in training]) for name in (judge, truth))
        correlations.append(spearmanr(scores, truths).statistic)
        # The earliest of equal ones, as a stage chooses.
        gains.append(100 * (truths[np.argmax(scores)] - truths[0]))
        best.append(100 * (truths.max() - truths[0]))
    share = sum(gains) / sum(best) if sum(best) else float("nan")
    harmed = sum(gain < -1 for gain in gains)
    return f"{np.nanmean(correlations):.2f} | {np.mean(gains):+.1f} | {share:.0%} | {harmed} of {len(gains)}"


if __name__ == "__main__":
    judges()
