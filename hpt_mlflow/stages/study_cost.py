"""What an experiment would take, from a short measurement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.device import resolve_device
from hpt_mlflow.training.arithmetic import choose_arithmetic
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import PRESETS

WARM_UP_STEPS, TRIED_STEPS = 1, 3


def seconds_per_step(settings: StudySettings) -> float:
    """Seconds for each optimiser step of HPT on this machine, on views of noise that lie in memory.

    Of several stages side by side, each has its share of the cores; on one GPU they take turns.
    """
    device = resolve_device(settings.device)
    at_once = settings.at_once if device.type == "cpu" else min(settings.at_once, max(1, torch.cuda.device_count()))
    with _threads(max(1, torch.get_num_threads() // settings.at_once)):
        return _measure(settings, device) / at_once


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(settings: StudySettings, device: torch.device) -> float:
    preset = PRESETS[settings.preset]
    arch, image_size = settings.arch or preset.arch, settings.image_size or preset.image_size
    backbone, feature_size = build_backbone(arch, image_size, settings.small_stem)
    batch_size = settings.batch_size or preset.plan.batch_size
    # As `planning.fit_plan` has it: BatchNorm takes two images or more.
    splits = max(1, min(settings.bn_splits or preset.plan.bn_splits, batch_size // 2))
    plan = replace(preset.plan, steps=10**6, batch_size=batch_size, bn_splits=splits)
    arithmetic = choose_arithmetic(settings.precision, "off", backbone, image_size, plan.batch_size, plan.steps, device)
    plan = replace(plan, precision=arithmetic.precision, compile=False)
    trainer = Trainer(backbone, feature_size, plan, ChannelStatistics((0.5,) * 3, (0.25,) * 3), device)
    shape = (plan.batch_size, 3, image_size, image_size)
    views = [torch.randn(shape, device=device).to(memory_format=torch.channels_last) for _ in range(2)]
    order = torch.randperm(plan.batch_size).to(device)
    for step in range(WARM_UP_STEPS + TRIED_STEPS):
        if step == WARM_UP_STEPS:
            started = time.perf_counter()
        # Reading it waits for the device.
        float(trainer.learn(views[0], views[1], order).loss.detach())
    return (time.perf_counter() - started) / TRIED_STEPS
