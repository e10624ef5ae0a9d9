"""The settings of a whole chain."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.options import Settings, option
from hpt_mlflow.settings.common import DEFAULT_MODEL_NAME, DEVICE_HELP, OPERATIONAL, PRESETS, RESUME_HELP


@dataclass(frozen=True, kw_only=True)
class MainSettings(Settings):
    """Pretrain, adapt and evaluate in a row."""

    base: str = option("builtin:noto", "Images that the base model learns from.", main=True, changes_result=False)
    source: str | None = option(
        None,
        "Images of a stage between base and target, nearer to the target. Default: none.",
        main=True,
        changes_result=False,
    )
    target: str = option(
        "builtin:twemoji",
        "Images that the model is for; labels, if any, are used only to evaluate it.",
        main=True,
        changes_result=False,
    )
    root: str | None = option(
        None, "Folder that relative paths start from, and that holds torchvision: datasets.", **OPERATIONAL
    )
    preset: str = option("gentle", "Defaults of all training options (see adapt).", choices=PRESETS, passed_on=True)
    base_steps: int | None = option(None, "Optimiser steps on base. Default: the preset's.", minimum=1)
    adapt_steps: int | None = option(None, "Optimiser steps on source and on target. Default: the preset's.", minimum=1)
    device: str = option("auto", DEVICE_HELP, **OPERATIONAL)
    nproc: int = option(1, "Processes that train together on this machine (see pretrain).", minimum=1, **OPERATIONAL)
    seed: int = option(0, "Seed of the training.", minimum=0, passed_on=True)
    split_seed: int = option(0, "Seed of the split into train, validation and test.", minimum=0, passed_on=True)
    resume: str = option("auto", RESUME_HELP, changes_result=False)
    model_name: str = option(DEFAULT_MODEL_NAME, "Name of the registered model that gets the versions.", passed_on=True)
