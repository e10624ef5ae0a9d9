"""From what the user says, the preset, the parent and the dataset to the plan of a training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from hpt_mlflow.augment.subset import parse_strengths, parse_subset
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import METHODS, load_method, options_of
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.options import Settings, marked, value_type
from hpt_mlflow.settings import AdaptSettings, TrainingSettings
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.training.plan import PRESETS, Plan


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Attributes:
        steps, learning_rate: length and peak learning rate of the stage where the user does not say.
        chain: names of the datasets behind the backbone, oldest first.
        parent: address of the model that it came from, or name and checksum of the file; None for random weights.
        weights: tags that say where weights from elsewhere came from.
    """

    backbone: nn.Module
    feature_size: int
    architecture: Architecture
    steps: int
    learning_rate: float
    chain: tuple[str, ...] = ()
    parent: str | None = None
    weights: dict[str, str] = field(default_factory=dict)


def make_plan(settings: TrainingSettings, start: Start) -> Plan:
    """The preset's plan with what the user says put in its place."""
    plan = PRESETS[settings.preset].plan
    given = {name: getattr(settings, name) for name in ("batch_size", "weight_decay")}
    return replace(
        plan,
        **{name: value for name, value in given.items() if value is not None},
        method=settings.method,
        options=method_options(settings),
        steps=settings.steps or start.steps,
        learning_rate=settings.learning_rate or start.learning_rate,
        subset=parse_subset(settings.augment),
        strengths=parse_strengths(settings.strengths or ""),
        update=settings.update if isinstance(settings, AdaptSettings) else "all",
        precision=settings.precision,
        seed=settings.seed,
    )


def split_for(settings: TrainingSettings, dataset: Dataset) -> Split:
    """The dataset's split, with as many images to learn from as `images` says.

    Raises:
        HptError: there are not so many.
    """
    split = dataset.split(settings.split_seed)
    if settings.images is None:
        return split
    count = parse_count("images", settings.images)
    if count > len(split.seen):
        problem = f"{count} is more than the {len(split.seen)} images of {dataset.name} that training may see"
        raise HptError(problem, "lower it, or leave it out", setting="images")
    return split.reduced(count, settings.split_seed)


def fit_plan(plan: Plan, settings: TrainingSettings, name: str, count: int, processes: int = 1) -> Plan:
    """The plan cut to what the dataset has, in equal parts for all processes. What the user named is refused, not cut.

    Args:
        name: of the dataset.
        count: images that training may see.

    Raises:
        HptError: there are too few images, or they cannot be shared equally.
    """
    if count < 2:
        raise HptError(f"data: {name} leaves {count} images to learn from; at least 2 are needed")
    if settings.batch_size is not None and settings.batch_size > count:
        raise HptError(
            f"batch_size: {settings.batch_size} is more than the {count} images of {name} that training may see; lower "
            f"it to {count} or less"
        )
    if settings.batch_size is not None and settings.batch_size % processes:
        raise HptError(
            f"batch_size: {settings.batch_size} images cannot be shared equally by {processes} processes; use a "
            f"multiple of {processes}"
        )
    if count < 2 * processes:
        raise HptError(f"nproc: {count} images are too few for {processes} processes of at least 2 each; lower it")
    batch_size = min(plan.batch_size, count) // processes * processes
    if processes > 1 and batch_size < 2 * processes:
        raise HptError(
            f"batch_size: {plan.batch_size} images are fewer than 2 for each of {processes} processes; use "
            f"{2 * processes} or more"
        )
    options = load_method(plan.method).fit_options(plan.options, given_options(settings), batch_size, count, processes)
    warmup_steps = min(plan.warmup_steps, plan.steps // 10)
    return replace(plan, batch_size=batch_size, options=options, warmup_steps=warmup_steps)


def method_options(settings: TrainingSettings) -> dict[str, Any]:
    """The preset's options of the method, with what the user says put in their place."""
    return {**METHODS[settings.method].presets[settings.preset], **given_options(settings)}


def given_options(settings: TrainingSettings) -> dict[str, Any]:
    """Those options of the method that the user has set."""
    given = {name: getattr(settings, name) for name in options_of(settings.method)}
    return {name: value for name, value in given.items() if value is not None}


def identify(stage: str, settings: Settings, datasets: list[Dataset], parent: str | None = None) -> Identity:
    """What makes another run the same work: all settings that decide what comes of it, the data, and the parent.

    Args:
        parent: the address of the parent without `latest` or alias, or name and checksum of the file of weights.
    """
    said = {entry.name: _as_written(settings, entry.name) for entry in fields(settings)}
    decisive = {name: said[name] for name in marked(settings, "changes_result")}
    data = [[dataset.name, dataset.digest] for dataset in datasets]
    named = {"parent": parent} if parent else {}
    return Identity({"stage": stage, **decisive, **named, "data": data}, _command(stage, settings, said | named))


def _as_written(settings: Settings, name: str) -> Any:
    """The value of a setting in the one form that a command line reads back."""
    value = getattr(settings, name)
    return float(value) if value is not None and value_type(settings, name) is float else value


def _command(stage: str, settings: Settings, values: dict[str, Any]) -> str:
    """The command that does this work, without what is said by default."""
    words = ["hpt", stage]
    for entry in fields(settings):
        value = values[entry.name]
        if value != entry.default and entry.name != "resume":
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words += [f"--{entry.name.replace('_', '-')}", text]
    return shlex.join(words)
