"""How a training goes, from its settings and the size of its dataset: the one place where that is decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hpt_mlflow.augment.multicrop import NONE, LocalViews
from hpt_mlflow.augment.subset import Strengths, parse_strengths, parse_subset
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import load_method, options_of, preset_options
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.positions import call_at_size, local_side
from hpt_mlflow.models.update import parse_update
from hpt_mlflow.settings import AdaptSettings, PretrainSettings, TrainingSettings
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.tracking.tags import PUBLISHED, RANDOM
from hpt_mlflow.training.plan import OWN_RATE, PRESETS, TOUCHES_LITTLE, Plan, with_optimizer


def resolve_training(
    settings: TrainingSettings,
    name: str,
    images: int,
    processes: int = 1,
    origin: str = PUBLISHED,
    has_batch_norm: bool = True,
) -> Plan:
    """The preset's plan with the user's settings in place, cut to what the dataset has in equal parts per process.

    What the user set is refused rather than cut. Precision and compile stay as the user set them, and are
    decided later.

    Args:
        name: of the dataset.
        images: number of images to learn from.
        processes: that train together.
        origin: what the chain of the parent began with, `RANDOM` or `PUBLISHED` weights.
        has_batch_norm: whether the network has BatchNorm; vision transformers have none.

    Raises:
        HptError: there are too few images, or they cannot be shared equally.
    """
    own = preset_plan(settings)
    optimizer = settings.optimizer or (own.optimizer if has_batch_norm else "adamw")
    preset = with_optimizer(own, optimizer, _is_from_random_weights(settings))
    changes = _update(settings, preset)
    kind = parse_update(changes["update"]).kind
    faster = TOUCHES_LITTLE.get(kind, 1.0) if optimizer == "adamw" else 1.0
    steps = length_of(settings)
    batch_size = _batch_size(settings, name, images, processes)
    given = {option: getattr(settings, option) for option in options_of(settings.method)}
    given = {option: value for option, value in given.items() if value is not None}
    options: dict[str, Any] = {**preset_options(settings.method, settings.preset), **given}
    return replace(
        preset,
        method=settings.method,
        options=load_method(settings.method).fit_options(options, given, batch_size, images, processes),
        steps=steps,
        batch_size=batch_size,
        learning_rate=settings.learning_rate or faster * _learning_rate(settings, preset, origin),
        warmup_steps=min(preset.warmup_steps, steps // 10),
        weight_decay=preset.weight_decay if settings.weight_decay is None else settings.weight_decay,
        layer_decay=preset.layer_decay if settings.layer_decay is None else settings.layer_decay,
        drop_path=settings.drop_path,
        clip_gradients=settings.clip_gradients,
        subset=parse_subset(settings.augment),
        strengths=strengths_of(settings),
        head_rate=preset.head_rate / faster,
        **changes,
        precision=settings.precision,
        seed=settings.seed,
    )


def resolve_local_views(method: str, backbone: nn.Module, architecture: Architecture) -> LocalViews:
    """The small views of a method, of a size that suits the network.

    Raises:
        HptError: the network takes images of one size only.
    """
    views = load_method(method).local_views
    if not views:
        return NONE
    side = local_side(architecture)
    example = torch.zeros(1, architecture.channels, side, side)
    training = backbone.training
    try:
        with torch.no_grad():
            call_at_size(backbone.eval(), example, architecture.image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = architecture.image_size
        problem = f"{method} also has views of {side} pixels, which {architecture.name} of {size} pixels cannot take"
        raise HptError(problem, "use a ResNet, a vit_... or another method", setting="arch") from error
    finally:
        backbone.train(training)
    return LocalViews(views, side)


def _learning_rate(settings: TrainingSettings, preset: Plan, origin: str) -> float:
    """The preset's; AdamW's is smaller for a parent whose chain began with random weights."""
    is_own = isinstance(settings, AdaptSettings) and origin == RANDOM
    return OWN_RATE if is_own and preset.optimizer == "adamw" else preset.learning_rate


def length_of(settings: TrainingSettings) -> int:
    """The optimiser steps of a training."""
    return settings.steps or preset_plan(settings).steps


def preset_plan(settings: TrainingSettings) -> Plan:
    """What the preset says of a stage from random weights, or from a parent or other weights."""
    preset = PRESETS[settings.preset]
    return preset.pretrain if _is_from_random_weights(settings) else preset.adapt


def _is_from_random_weights(settings: TrainingSettings) -> bool:
    return isinstance(settings, PretrainSettings) and settings.starts_from is None


def strengths_of(settings: TrainingSettings) -> Strengths:
    """The preset's strengths of augmentations with those in place that the user set."""
    return parse_strengths(settings.strengths or "", preset_plan(settings).strengths)


def _update(settings: TrainingSettings, preset: Plan) -> dict[str, Any]:
    """What may change, and whether statistics are kept or refreshed."""
    if not isinstance(settings, AdaptSettings):
        return {"update": "all", "statistics": preset.statistics}
    kept = settings.statistics or preset.statistics
    return {
        "update": settings.update,
        "lora_rank": settings.lora_rank,
        "lora_targets": settings.lora_targets,
        "statistics": "refresh" if settings.update == "bn-stats" else kept,
    }


def split_for(settings: TrainingSettings, dataset: Dataset) -> Split:
    """The dataset's split, with as many images to learn from as the setting `images` says.

    Raises:
        HptError: the dataset has fewer.
    """
    split = dataset.split(settings.split_seed)
    if settings.images is None:
        return split
    count = parse_count("images", settings.images)
    if count > len(split.seen):
        raise HptError(
            f"{count} is more than the {len(split.seen)} images of {dataset.name} that training may see",
            "lower it, or leave it out",
            setting="images",
        )
    return split.reduced(count, settings.split_seed)


def _batch_size(settings: TrainingSettings, name: str, images: int, processes: int) -> int:
    """The images per step that the dataset allows, a multiple of the number of processes."""
    given = settings.batch_size
    wanted = given or preset_plan(settings).batch_size
    if images < 2:
        raise HptError(f"{name} leaves {images} images to learn from; at least 2 are needed", setting="data")
    if given is not None and given > images:
        raise HptError(
            f"{given} is more than the {images} images of {name} that training may see",
            f"lower it to {images} or less",
            setting="batch_size",
        )
    if given is not None and given % processes:
        problem = f"{given} images cannot be shared equally by {processes} processes"
        raise HptError(problem, f"use a multiple of {processes}", setting="batch_size")
    if images < 2 * processes:
        problem = f"{images} images are too few for {processes} processes of at least 2 each"
        raise HptError(problem, "lower it", setting="nproc")
    batch_size = min(wanted, images) // processes * processes
    if processes > 1 and batch_size < 2 * processes:
        problem = f"{wanted} images are fewer than 2 for each of {processes} processes"
        raise HptError(problem, f"use {2 * processes} or more", setting="batch_size")
    return batch_size
