"""What an experiment would take, from a short measurement."""

from __future__ import annotations

import time
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
    """Seconds of an optimiser step of HPT on this machine, on views of noise that lie in memory."""
    preset = PRESETS[settings.preset]
    device = resolve_device(settings.device)
    arch, image_size = settings.arch or preset.arch, settings.image_size or preset.image_size
    backbone, feature_size = build_backbone(arch, image_size, settings.small_stem)
    plan = replace(preset.plan, steps=10**6, batch_size=settings.batch_size or preset.plan.batch_size)
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
