"""Hierarchical PreTraining as an MLflow Project.

import hpt_mlflow

base = hpt_mlflow.pretrain(data="photos/", alias="base")
target = hpt_mlflow.adapt(data="xrays/", parent=base.model_uri)
print(hpt_mlflow.evaluate(data="xrays/", model=target.model_uri).metrics)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpt_mlflow.errors import HptError

if TYPE_CHECKING:
    from hpt_mlflow.stages.adapt import adapt
    from hpt_mlflow.stages.evaluate import evaluate
    from hpt_mlflow.stages.main import main
    from hpt_mlflow.stages.pretrain import pretrain
    from hpt_mlflow.stages.study import study
    from hpt_mlflow.stages.tune import tune

__all__ = ["HptError", "adapt", "evaluate", "main", "pretrain", "study", "tune"]


def __getattr__(name: str) -> Any:
    """Import a stage when it is first asked for: torch and MLflow take seconds, `hpt --help` must not."""
    if name in ("adapt", "evaluate", "main", "pretrain", "study", "tune"):
        from importlib import import_module

        return getattr(import_module(f"hpt_mlflow.stages.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
