"""What people write for a model, and the one model that it means now."""

from __future__ import annotations

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import models_of_run
from hpt_mlflow.tracking.connection import check_database, tracking_errors
from hpt_mlflow.tracking.tags import MILESTONE_PREFIX


def concrete_uri(address: str, option: str, model_name: str) -> str:
    """The address with aliases and `latest` resolved to what they mean now.

    Args:
        address: models:/NAME/VERSION, models:/NAME/latest, models:/NAME@ALIAS, models:/m-ID, runs:/ID/NAME, runs:/ID
            (the run's last milestone), NAME@ALIAS, or an alias of `model_name`.
        option: what errors call the option that it was given with.
        model_name: whose alias a single word is.

    Raises:
        HptError: it is no such address, or nothing is there.
    """
    if "/" not in address and ":" not in address:
        name, at, alias = address.rpartition("@")
        address = f"models:/{name if at else model_name}@{alias}"
    kind, _, path = address.partition(":/")
    path = path.strip("/")
    if kind not in ("models", "runs") or not path:
        raise HptError(
            f"{option}: {address!r} is no address of a model; write models:/NAME/VERSION, NAME@ALIAS or runs:/ID"
        )
    if kind == "runs":
        return f"runs:/{path}" if "/" in path else milestones_of(path, option)[-1]
    if path.startswith("m-"):
        return f"models:/{path}"
    if "@" in path:
        name, _, alias = path.rpartition("@")
        try:
            return f"models:/{name}/{MlflowClient().get_model_version_by_alias(name, alias).version}"
        except MlflowException as error:
            raise HptError(
                f"{option}: the registered model {name!r} has no alias {alias!r}, or there is no such model"
            ) from error
    name, _, version = path.rpartition("/")
    if not name:
        raise HptError(f"{option}: {address!r} names no version; write models:/{path}/latest or models:/{path}@ALIAS")
    registry = mlflow.get_registry_uri()
    with tracking_errors(f"{option}: cannot look for {address} in the registry {registry}"):
        check_database(registry)
        versions = [int(v.version) for v in MlflowClient().search_model_versions(f"name='{name}'")]
    if not versions:
        raise HptError(f"{option}: there is no registered model {name!r} in {registry}; run pretrain first")
    if version == "latest":
        return f"models:/{name}/{max(versions)}"
    if not version.isdigit() or int(version) not in versions:
        raise HptError(f"{option}: {name!r} has no version {version!r}; it has {', '.join(map(str, sorted(versions)))}")
    return f"models:/{name}/{version}"


def milestones_of(run_id: str, option: str) -> list[str]:
    """Addresses of the backbones that a run has kept, in the order of their steps.

    Args:
        option: what errors call the option that the run was given with.

    Raises:
        HptError: there is no such run, or it has kept none.
    """
    client = MlflowClient()
    try:
        experiment_id = client.get_run(run_id).info.experiment_id
    except MlflowException as error:
        raise HptError(f"{option}: there is no run {run_id!r}") from error
    models = models_of_run(client, run_id, experiment_id)
    ready = [name for name, model in models.items() if model.status == LoggedModelStatus.READY]
    kept = [name for name in ready if name.startswith(MILESTONE_PREFIX)]
    if not kept:
        raise HptError(f"{option}: the run {run_id!r} has kept no model")
    ordered = sorted(kept, key=lambda name: int(name.removeprefix(MILESTONE_PREFIX)))
    return [f"models:/{models[name].model_id}" for name in ordered]


def registered_as(run_id: str) -> str | None:
    """Address of the version that a run's last milestone was registered as."""
    return MlflowClient().get_run(run_id).data.tags.get(tag.MODEL)


def model_id_of(uri: str) -> str | None:
    """The LoggedModel behind a concrete address, where MLflow tells."""
    path = uri.partition(":/")[2]
    if path.startswith("m-"):
        return path
    if uri.startswith("models:/"):
        name, _, version = path.rpartition("/")
        # On some stores the version itself does not say its model_id, but its source does.
        source = MlflowClient().get_model_version(name, version).source or ""
        return next((part for part in source.split("/") if part.startswith("m-")), None)
    return None
