"""The run that a stage started now is nested in, and the experiment that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import mlflow
from mlflow.entities import RunInfo
from mlflow.utils.autologging_utils import disable_autologging

# The id of the run around a stage, if another process runs that.
PARENT_VARIABLE = "HPT_PARENT_RUN_ID"
_current: ContextVar[RunInfo | None] = ContextVar("current_run", default=None)


@contextmanager
def nesting(info: RunInfo) -> Iterator[None]:
    """Let runs that are started in the block be nested in this one.

    MLflow's autologging is for the user's own code: it is off until the outermost of nested blocks ends.
    """
    # MLflow's own block switches it on again at its end, even inside another one.
    autologging = nullcontext() if _current.get() else disable_autologging()
    token = _current.set(info)
    try:
        with autologging:
            yield
    finally:
        _current.reset(token)


def current_run_id() -> str | None:
    """The run that a stage started now would be nested in."""
    around = _around()
    return around.run_id if around else os.environ.get(PARENT_VARIABLE) or None


def experiment_id_here() -> str:
    """The experiment that runs started now belong to: that of the run around them, if there is one."""
    around = _around()
    # Whoever sets PARENT_VARIABLE also sets MLFLOW_EXPERIMENT_ID.
    return str(around.experiment_id) if around else _default_experiment_id()


def nested_environment(parent_run_id: str) -> dict[str, str]:
    """The environment variables of a process whose runs are nested in a run: the same servers and experiment.

    Args:
        parent_run_id: the run around them, or nothing.
    """
    return {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri(),
        "MLFLOW_EXPERIMENT_ID": experiment_id_here(),
        PARENT_VARIABLE: parent_run_id,
    }


def _default_experiment_id() -> str:
    """The experiment of `mlflow.set_experiment`, of MLflow's environment variables, or MLflow's default."""
    try:
        # What `mlflow.start_run` uses; there is no public function for it.
        from mlflow.tracking.fluent import _get_experiment_id as active_experiment_id
    except ImportError:
        name, experiment_id = os.environ.get("MLFLOW_EXPERIMENT_NAME"), os.environ.get("MLFLOW_EXPERIMENT_ID")
        # `set_experiment` sets the variable of the id.
        return str(experiment_id or (mlflow.set_experiment(name).experiment_id if name else "0"))
    return str(active_experiment_id())


def _around() -> RunInfo | None:
    """The run around this place in this process: a stage's, or one of the user's."""
    active = mlflow.active_run()
    return _current.get() or (active.info if active else None)
