"""The entries of a spool that are about models and their versions. See `entries` for what holds for all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel

from hpt_mlflow.files import replacing
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import models_of_run
from hpt_mlflow.tracking.connection import without_retries
from hpt_mlflow.tracking.delivery.content import Content
from hpt_mlflow.tracking.delivery.run_client import RunClient

# MLflow's limit on the description of a version.
LONGEST_DESCRIPTION = 5000
MODEL_DESCRIPTION = (
    "Models of Hierarchical PreTraining. Each version says what it has learned from, and how to use it. `hpt lineage` "
    "shows the stages behind a version, `hpt compare` says which of two is better, and `hpt promote` moves the alias "
    "champion."
)
MODEL_FILE = "MLmodel"


@dataclass(frozen=True)
class Model(Content):
    """A model as `mlflow.pyfunc.save_model` writes it, which becomes a LoggedModel of the run."""

    kind = "model"
    has_files = True
    name: str
    step: int
    params: Mapping[str, str]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"the model {self.name}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Create it, link it to the run, and upload its files, as far as that is not done."""
        model = models_of_run(run.mlflow, run.run_id, run.experiment_id).get(self.name)
        if model is None:
            with without_retries():
                model = run.mlflow.create_logged_model(
                    run.experiment_id, self.name, run.run_id, dict(self.tags), dict(self.params)
                )
        outputs = run.mlflow.get_run(run.run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            run.mlflow.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, self.step)])
        if model.status != LoggedModelStatus.READY:
            _sign(folder, model, run.run_id)
            run.mlflow.log_model_artifacts(model.model_id, str(folder))
            run.mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


@dataclass(frozen=True)
class Version(Content):
    """A model of the run that becomes a version of a registered model; the run is told its address."""

    kind = "version"
    model: str
    model_name: str
    tags: Mapping[str, str]
    alias: str | None = None
    description: str = ""

    def __str__(self) -> str:
        return f"a version of {self.model_name}"

    def deliver(self, run: RunClient, folder: Path) -> str:
        """Register it, unless it is."""
        name = run.model_name or self.model_name
        model_id = run.model_id(self.model)
        version = self._register(run, name, model_id)
        _link(run, model_id, name, version)
        if self.alias:
            run.mlflow.set_registered_model_alias(name, self.alias, version)
        address = f"models:/{name}/{version}"
        description = self.description.replace(tag.VERSION_PLACEHOLDER, address)
        run.mlflow.update_model_version(name, version, description[:LONGEST_DESCRIPTION])
        run.mlflow.log_batch(run.run_id, tags=[RunTag(tag.MODEL, address), RunTag(tag.DESCRIPTION, description)])
        return address

    def _register(self, run: RunClient, name: str, model_id: str) -> str:
        for version in run.mlflow.search_model_versions(f"name='{name}'"):
            if model_id in (version.source or ""):
                return str(version.version)
        try:
            run.mlflow.create_registered_model(name, description=MODEL_DESCRIPTION)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise
        source = f"models:/{model_id}"
        with without_retries():
            created = run.mlflow.create_model_version(name, source, run.run_id, dict(self.tags), model_id=model_id)
        return str(created.version)


@dataclass(frozen=True)
class Alias(Content):
    """An alias of a version that is there already."""

    kind = "alias"
    name: str
    version: str
    alias: str

    def __str__(self) -> str:
        return f"the alias {self.alias} of {self.name}"

    def deliver(self, run: RunClient, folder: Path) -> None:
        """Move it."""
        run.mlflow.set_registered_model_alias(self.name, self.alias, self.version)


def _link(run: RunClient, model_id: str, name: str, version: str) -> None:
    """Let the page of a LoggedModel show its version, as `mlflow.register_model` does; a server has done so itself."""
    links = json.loads(run.mlflow.get_logged_model(model_id).tags.get(tag.MODEL_VERSIONS) or "[]")
    if (name, version) not in [(link["name"], str(link["version"])) for link in links]:
        links.append({"name": name, "version": int(version)})
        run.mlflow.set_logged_model_tags(model_id, {tag.MODEL_VERSIONS: json.dumps(links)})


def _sign(folder: Path, model: LoggedModel, run_id: str) -> None:
    """Write into a saved model which LoggedModel it is, as MLflow itself does when it logs one."""
    described = MlflowModel.load(str(folder))
    described.model_id = model.model_id
    described.model_uuid = model.model_id
    described.artifact_path = model.artifact_location
    described.run_id = run_id
    # A kill in the middle must not leave half a description behind: no later delivery could read that.
    with replacing(folder / MODEL_FILE) as temporary:
        described.save(str(temporary))
