"""Hierarchical PreTraining on MLflow: self-supervised training on a large dataset, then on ones nearer to yours.

    import hpt_mlflow as hpt

    base = hpt.pretrain(data="photos/", alias="base")
    target = hpt.adapt(data="xrays/", parent=base.model_uri)
    print(hpt.evaluate(data="xrays/", model=target.model_uri).metrics)
    backbone, transform, _ = target.load()

`help(hpt.pretrain)` explains every option. Importing this package changes nothing in Python, and imports neither torch
nor MLflow, which take seconds: each name is imported when it is first used. `__init__.pyi` tells editors and mypy the
types; `make generate` writes it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Where each public name is, besides the stages.
_PLACES = {
    "AdaptSettings": "hpt_mlflow.settings",
    "Dataset": "hpt_mlflow.data.dataset",
    "EmbedSettings": "hpt_mlflow.settings",
    "EvaluateSettings": "hpt_mlflow.settings",
    "HptError": "hpt_mlflow.errors",
    "Interval": "hpt_mlflow.interval",
    "MainSettings": "hpt_mlflow.settings",
    "ModelComparison": "hpt_mlflow.stages.models",
    "PretrainSettings": "hpt_mlflow.settings",
    "StageResult": "hpt_mlflow.stages.result",
    "StudySettings": "hpt_mlflow.settings",
    "TuneSettings": "hpt_mlflow.settings",
    "compare": "hpt_mlflow.stages.models",
    "export": "hpt_mlflow.stages.weights",
    "import_weights": "hpt_mlflow.stages.weights",
    "lineage": "hpt_mlflow.stages.models",
    "load_model": "hpt_mlflow.stages.models",
    "make_whole": "hpt_mlflow.stages.weights",
    "open_dataset": "hpt_mlflow.data.sources",
    "predict": "hpt_mlflow.stages.predict",
    "promote": "hpt_mlflow.stages.models",
    "register_architecture": "hpt_mlflow.models.backbone",
    "register_method": "hpt_mlflow.methods",
    "register_stage": "hpt_mlflow.stages",
    "study_plan": "hpt_mlflow.stages.study",
}


def _public() -> list[str]:
    from hpt_mlflow.stages import STAGES

    return sorted([*_PLACES, *STAGES])


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name == "__all__":
        return _public()
    if not name.startswith("_"):
        from hpt_mlflow.stages import STAGES

        if name in STAGES:
            return STAGES[name].function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_public(), *(name for name in globals() if name.startswith("__"))])
