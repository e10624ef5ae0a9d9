"""MLflow's client, bound to one run."""

from __future__ import annotations

import time

from mlflow.entities import LoggedModelStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.artifacts import models_of_run


class RunClient:
    """What entries of a run are delivered with.

    Attributes:
        model_name: registered model for its versions, in place of the one that they were made for.
    """

    def __init__(self, run_id: str, experiment_id: str, model_name: str | None = None) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.model_name = model_name
        self.mlflow = MlflowClient()
        self._model_ids: dict[str, str] = {}

    def answers(self) -> bool:
        """Whether the server answers at all."""
        try:
            self.mlflow.get_run(self.run_id)
        except MlflowException as error:
            # That the run does not exist any more is an answer.
            return error.error_code == "RESOURCE_DOES_NOT_EXIST"
        except Exception:
            return False
        return True

    def status(self) -> str:
        """The status of the run, as the server knows it."""
        return str(self.mlflow.get_run(self.run_id).info.status)

    def heartbeat(self) -> None:
        """Show that a process works on the run."""
        self.mlflow.log_batch(self.run_id, tags=[heartbeat_tag()])

    def model_id(self, model: str) -> str:
        """The id of a model of the run by its name; an id is itself.

        Raises:
            HptError: it is not there, or not complete.
        """
        if model.startswith("m-"):
            return model
        if model not in self._model_ids:
            logged = models_of_run(self.mlflow, self.run_id, self.experiment_id).get(model)
            if logged is None or logged.status != LoggedModelStatus.READY:
                raise HptError(f"the model {model} of the run is not there yet")
            self._model_ids[model] = logged.model_id
        return self._model_ids[model]


def heartbeat_tag() -> RunTag:
    """The tag that shows that a process works on a run now."""
    return RunTag(tag.HEARTBEAT, str(int(time.time())))
