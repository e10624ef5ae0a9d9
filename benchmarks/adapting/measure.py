"""Adapt real Bases to real targets, and see what each way to adapt, and each judge of its milestones, is worth.

    python benchmarks/adapting/measure.py run --root DATA --target twemoji --recipe gentle --seed 0 --to lines.jsonl
    python benchmarks/adapting/measure.py bars lines.jsonl
    python benchmarks/adapting/measure.py page lines.jsonl --to docs/adapting.md --to docs/results.md
    python benchmarks/adapting/measure.py picture lines.jsonl --to docs/images/adapting.png

`run` adapts once. It appends a line for the parent (step 0), for each milestone, and for variants of the last one: with
the mean of its and the parent's weights (`half`), with the key encoder's weights, an average over the last steps
(`average`), and with BatchNorm's statistics measured on plain images (`refreshed`). A line has the accuracy on test and
on validation, and the score of every judge. `bars`, `methods`, `updates`, `rates`, `recipes`, `judges`, `margins` and
`harm` print tables of any number of lines, and `page` writes them into pages.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from candidates import Candidates
from pages import page
from recipes import RECIPES
from tables import TABLES, picture
from torch import nn

from hpt_mlflow.augment.multicrop import LocalViews, useful_side
from hpt_mlflow.data.batches import Batch, ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.data.statistics import kept_channel_statistics
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.neighbours import nearest_neighbour_classes
from hpt_mlflow.evaluation.objectives import OBJECTIVES, has_judge
from hpt_mlflow.evaluation.objectives.base import Examples, make_judge
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.methods.moco import MoCo
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.settings import AdaptSettings
from hpt_mlflow.stages.training.judging import open_judge
from hpt_mlflow.stages.training.resolve import resolve_local_views, resolve_training
from hpt_mlflow.stages.training.start import Start, find_weights, start_from_weights
from hpt_mlflow.tracking.tags import PUBLISHED, RANDOM
from hpt_mlflow.training.arithmetic import choose_precision
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.milestones import parse_milestones
from hpt_mlflow.training.plan import PRESETS, Plan

JUDGES = [name for name in OBJECTIVES if has_judge(name)]


class IndexedTrainer(Trainer):
    """A trainer that tells methods without views of other images which images are in a step."""

    def __init__(self, *arguments: Any, batches: ViewBatches, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tasks = batches.tasks(range(self.plan.steps))

    def _do_step(self, batch: Batch) -> None:
        _, indices = next(self._tasks)
        if hasattr(self.method, "indices"):
            self.method.indices = torch.from_numpy(indices).to(self.device)
        super()._do_step(batch)


class Network(NamedTuple):
    """A backbone, and how long its training took up to it."""

    step: int
    variant: str
    backbone: nn.Module
    seconds: float


@click.group()
def measure() -> None:
    """What ways to adapt, and judges of milestones, are worth."""


@measure.command()
@click.option("--root", required=True, help="Folder that --target starts from.")
@click.option("--target", required=True)
@click.option("--weights", default="efficientnet-lite0", show_default=True, help="Base, as for hpt pretrain.")
@click.option("--base", help="Name of the Base in tables. Default: --weights.")
@click.option("--arch")
@click.option("--image-size", default=64, show_default=True)
@click.option("--recipe", default="gentle", show_default=True, type=click.Choice(list(RECIPES)))
@click.option("--steps", default=600, show_default=True)
@click.option("--milestones", default="25%,50%,100%", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--own", is_flag=True, help="The Base was trained from random weights, and is not finished.")
@click.option(
    "--scores",
    type=click.Choice(["all", "judges", "none"]),
    default="all",
    show_default=True,
    help="Beside accuracy: of judges, and also figures that became no judge.",
)
@click.option("--variants", is_flag=True, help="Also look at variants of the parent and of the last milestone.")
@click.option("--to", type=click.Path(path_type=Path), required=True)
def run(
    root: str,
    target: str,
    weights: str,
    base: str | None,
    arch: str | None,
    image_size: int,
    recipe: str,
    steps: int,
    milestones: str,
    seed: int,
    own: bool,
    scores: str,
    variants: bool,
    to: Path,
) -> None:
    """Adapt once; a line for each milestone."""
    chosen = RECIPES[recipe]
    settings = AdaptSettings(data=target, root=root, steps=steps, seed=seed, **chosen.settings)
    dataset = open_dataset(target, root)
    split = dataset.split(settings.split_seed)
    start = start_from_weights(find_weights(weights, arch, image_size, small_stem=False))
    origin = RANDOM if own else PUBLISHED
    plan = replace(resolve_training(settings, dataset.name, len(split.seen), origin=origin), **chosen.plan)
    if chosen.from_random:
        start = replace(start, backbone=build_backbone(start.architecture, seed)[0])
        plan = replace(plan, learning_rate=PRESETS["quick"].pretrain.learning_rate)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = replace(plan, precision=choose_precision("auto", device))
    if plan.method.startswith("diet"):
        plan = replace(plan, options={"images": len(dataset)})
    local = resolve_local_views(plan.method, start.backbone, start.architecture)
    side = useful_side(image_size, plan.strengths, local)
    seen, labelled = (Images(dataset, part, side, cache_gib=4) for part in (split.seen, split.labelled))
    statistics = start.statistics if plan.statistics == "keep" else kept_channel_statistics(seen)
    due = parse_milestones(milestones, steps)
    reader = FeatureReader(labelled, image_size, statistics, device)
    as_parent = adapted = Figures(reader, split, settings, plan, start, due, scores)
    if statistics != start.statistics:
        as_parent = Figures(replace(reader, statistics=start.statistics), split, settings, plan, start, due, scores)
    line = {"base": base or weights, "target": target, "recipe": recipe, "steps": steps, "seed": seed}
    found = _networks(start, plan, local, seen, adapted.reader, due)
    if variants:
        found = _with_variants(found, adapted.reader, split)
    with to.open("a") as file:
        for step, variant, backbone, seconds in found:
            values = (adapted if step else as_parent).of(backbone)
            file.write(json.dumps(line | {"step": step, "variant": variant, "seconds": seconds} | values) + "\n")
            file.flush()
            shown = {name: round(value, 4) for name, value in values.items()}
            print(step, variant, f"{seconds:.0f} s", shown, flush=True)


def _networks(
    start: Start, plan: Plan, local: LocalViews, seen: Images, reader: FeatureReader, due: frozenset[int]
) -> Iterator[Network]:
    """The parent, and each milestone."""
    yield Network(0, "", start.backbone.to(reader.device), 0.0)
    batches = ViewBatches(seen, plan.batch_size, reader.image_size, plan.subset, plan.strengths, plan.seed, local=local)
    trainer = IndexedTrainer(
        start.backbone, start.feature_size, plan, reader.statistics, reader.device, batches=batches
    )
    batches.views = trainer.method.views
    seconds, began = 0.0, time.perf_counter()
    for step, _ in trainer.train(batches, workers=0, report_every=50):
        if step in due:
            seconds += time.perf_counter() - began
            yield Network(step, "", trainer.backbone, seconds)
            began = time.perf_counter()
    if isinstance(trainer.method, MoCo):
        yield Network(plan.steps, "average", trainer.method.key_encoder[0], seconds)


def _with_variants(networks: Iterator[Network], reader: FeatureReader, split: Split) -> Iterator[Network]:
    """Also the parent and the last milestone with statistics of plain images, and what is half way between them."""
    parent = last = None
    for network in networks:
        yield network
        last = network if not network.variant else last
        if parent is None:
            parent = network._replace(backbone=copy.deepcopy(network.backbone).eval())
    yield last._replace(variant="half", backbone=_half_way(parent.backbone, last.backbone))
    for one in (parent, last):
        refreshed = reader.with_refreshed_batch_norm(one.backbone, split.seen)
        yield one._replace(variant="refreshed", backbone=refreshed)


def _half_way(one: nn.Module, other: nn.Module) -> nn.Module:
    """The network with the mean of two networks' weights (WiSE-FT: arXiv 2109.01903, with alpha 0.5)."""
    mean = copy.deepcopy(one)
    others = other.state_dict()
    mean.load_state_dict(
        {
            name: torch.lerp(values, others[name], 0.5) if values.is_floating_point() else values
            for name, values in one.state_dict().items()
        }
    )
    return mean


class Figures:
    """Accuracies and the scores of all judges, of any backbone."""

    def __init__(
        self,
        reader: FeatureReader,
        split: Split,
        settings: AdaptSettings,
        plan: Plan,
        start: Start,
        due: frozenset[int],
        scores: str,
    ) -> None:
        """
        Args:
            scores: all, judges or none.
        """
        self.reader, self.split = reader, split
        self.labels = reader.images.dataset.labels
        self.classes = len(reader.images.dataset.classes)
        # Of all images of train and validation: to choose a recipe by.
        self.neighbours = make_judge("knn", reader, split, self.labels)
        # As many as a stage may afford: to choose a milestone by.
        passes = MoCo.passes
        self.judgings = {
            name: open_judge(replace(settings, judge=name), plan, passes, 1 + len(due), reader, split)
            for name in (JUDGES if scores != "none" else ())
        }
        self.candidates = self._candidates(start.backbone) if scores == "all" else None

    def _candidates(self, parent: nn.Module) -> Candidates:
        rounds = self.judgings["consistency"].judge.rounds
        examples = np.unique(np.concatenate([part for pair in rounds for part in pair]))
        return Candidates(self.reader, examples[:: max(1, 3 * len(examples) // 1152)], parent)

    def of(self, backbone: nn.Module) -> dict[str, float]:
        """By name; `cost_...` are seconds of a judge and its check, `noise_...` that of the scores."""
        values = self._accuracy(backbone)
        for name, judging in self.judgings.items():
            began = time.perf_counter()
            values[name], *checked = judging.metrics(backbone).values()
            values |= {f"cost_{name}": time.perf_counter() - began, f"noise_{name}": judging.judge.noise}
            if judging.check:
                values |= {f"check_{name}": checked[0], f"noise_check_{name}": judging.check.noise}
        return values | (self.candidates.figures(backbone) if self.candidates else {})

    def _accuracy(self, backbone: nn.Module) -> dict[str, float]:
        """On validation, and on test by the protocol `fast` of `hpt evaluate`."""
        split = self.split
        train, validation, test = (
            Examples(self.reader.features(backbone, part), self.labels[part], part)
            for part in (split.train, split.validation, split.test)
        )
        both = Examples(*(np.concatenate(pair) for pair in zip(train, validation, strict=True)))
        probe = fit_probe(train.features, train.labels, validation.features, validation.labels, self.classes)
        answers = {
            "test_probe": probe.head.probabilities(test.features).argmax(axis=1),
            "test_knn": nearest_neighbour_classes(train.features, train.labels, test.features),
        }
        on_validation = {"val_probe": probe.validation_score, "val_knn": self.neighbours.score_of(both)}
        return on_validation | {name: float((answer == test.labels).mean()) for name, answer in answers.items()}


for command in (*TABLES.values(), page, picture):
    measure.add_command(command)

if __name__ == "__main__":
    measure()
