"""Addresses of models: what users write, the one model that it means now, and the other addresses of that model."""

from __future__ import annotations

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import models_of_run
from hpt_mlflow.tracking.connection import check_database, tracking_errors


def concrete_uri(address: str, option: str, model_name: str) -> str:
    """The address with aliases and `latest` resolved to what they mean now.

    Args:
        address: models:/NAME/VERSION, models:/NAME/latest, models:/NAME@ALIAS, models:/m-ID, runs:/ID/NAME, runs:/ID
            (the run's last milestone), NAME@ALIAS, or an alias of `model_name`.
        option: name of the option in errors.
        model_name: whose alias a single word is.

    Raises:
        HptError: it is not a model address, or there is no such model.
    """
    if "/" not in address and ":" not in address:
        name, at, alias = address.rpartition("@")
        address = f"models:/{name if at else model_name}@{alias}"
    kind, _, path = address.partition(":/")
    path = path.strip("/")
    if kind not in ("models", "runs") or not path:
        remedy = "write models:/NAME/VERSION, NAME@ALIAS or runs:/ID"
        raise HptError(f"{address!r} is not a model address", remedy, setting=option)
    if kind == "runs":
        return f"runs:/{path}" if "/" in path else milestones_of(path, option)[-1]
    if path.startswith("m-"):
        return f"models:/{path}"
    if "@" in path:
        name, _, alias = path.rpartition("@")
        try:
            return f"models:/{name}/{MlflowClient().get_model_version_by_alias(name, alias).version}"
        except MlflowException as error:
            problem = f"the registered model {name!r} has no alias {alias!r}, or does not exist"
            raise HptError(problem, setting=option) from error
    return _version_address(path, option)


def _version_address(path: str, option: str) -> str:
    """The address of NAME/VERSION or NAME/latest."""
    name, _, version = path.rpartition("/")
    if not name:
        remedy = f"write models:/{path}/latest or models:/{path}@ALIAS"
        raise HptError(f"'models:/{path}' names no version", remedy, setting=option)
    registry = mlflow.get_registry_uri()
    with tracking_errors(f"{option}: cannot look for models:/{path} in the registry {registry}"):
        check_database(registry)
        versions = sorted(int(each.version) for each in MlflowClient().search_model_versions(f"name='{name}'"))
    if not versions:
        raise HptError(f"there is no registered model {name!r} in {registry}", "run pretrain first", setting=option)
    if version == "latest":
        return f"models:/{name}/{versions[-1]}"
    if not version.isdigit() or int(version) not in versions:
        raise HptError(
            f"{name!r} has no version {version!r}", f"it has {', '.join(map(str, versions))}", setting=option
        )
    return f"models:/{name}/{version}"


def milestones_of(run_id: str, option: str) -> list[str]:
    """Addresses of the backbones that a run has kept, ordered by step.

    Args:
        option: name of the option in errors.

    Raises:
        HptError: there is no such run, or it has kept none.
    """
    client = MlflowClient()
    try:
        experiment_id = client.get_run(run_id).info.experiment_id
    except MlflowException as error:
        raise HptError(f"there is no run {run_id!r}", setting=option) from error
    models = models_of_run(client, run_id, experiment_id)
    by_step = {
        int(name.removeprefix(tag.MILESTONE_PREFIX)): model.model_id
        for name, model in models.items()
        if name.startswith(tag.MILESTONE_PREFIX) and model.status == LoggedModelStatus.READY
    }
    if not by_step:
        raise HptError(f"the run {run_id!r} has kept no model", setting=option)
    return [f"models:/{by_step[step]}" for step in sorted(by_step)]


def registered_as(run_id: str) -> str | None:
    """Address of the version that a run's last milestone was registered as."""
    return MlflowClient().get_run(run_id).data.tags.get(tag.MODEL)


def is_version(address: str) -> bool:
    """Whether an address is models:/NAME/VERSION."""
    return address.startswith("models:/") and not address.startswith("models:/m-") and "/" in address[8:]


def split_version(address: str) -> tuple[str, str]:
    """NAME and VERSION of models:/NAME/VERSION."""
    name, _, version = address.removeprefix("models:/").rpartition("/")
    return name, version


def find_version(address: str) -> ModelVersion | None:
    """The registered version of an address; None if it is deleted."""
    try:
        return MlflowClient().get_model_version(*split_version(address))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def exists(address: str) -> bool:
    """Whether a registered version exists, and is not deleted."""
    return find_version(address) is not None


def source_of(version: ModelVersion) -> str:
    """The version that this one is a copy of, or what else it was made from; empty if that is unknown."""
    return version.tags.get(tag.COPY_OF) or version.source or ""


def model_id_of(address: str) -> str | None:
    """The LoggedModel behind a concrete address, if MLflow knows it."""
    if is_version(address):
        return model_id_in(MlflowClient().get_model_version(*split_version(address)).source)
    return address.removeprefix("models:/") if address.startswith("models:/") else None


def model_id_in(source: str | None) -> str | None:
    """The LoggedModel in the source of a version: on some stores, the version's own `model_id` is empty."""
    return next((part for part in (source or "").split("/") if part.startswith("m-")), None)


def addresses_of_model(address: str) -> list[str]:
    """All addresses of one model, beginning with the given one: its version, what that was copied from, copies of it.

    Raises whatever MLflow does.
    """
    addresses = [address]
    for known in addresses:
        # Two versions of one name made from one milestone, and copies in other registered models.
        copies = [
            *MlflowClient().search_model_versions(f"source_path='{known}'"),
            *MlflowClient().search_model_versions(f"tags.`{tag.COPY_OF}`='{known}'"),
        ]
        same = [_source(known), *(f"models:/{copy.name}/{copy.version}" for copy in copies)]
        addresses += [each for each in same if each and each not in addresses]
    return addresses


def _source(address: str) -> str:
    """The version or LoggedModel that a registered version was made from; empty if that is unknown."""
    version = find_version(address) if is_version(address) else None
    source = source_of(version) if version else ""
    model_id = model_id_in(source)
    return source if is_version(source) else f"models:/{model_id}" if model_id else ""
