"""The run of a stage: started or resumed, logged to through its spool, and ended with its true status."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pandas as pd
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from PIL import Image

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.errors import HptError, valid_unicode
from hpt_mlflow.group import joins_others
from hpt_mlflow.signals import end_with_parent, ignore_signals, termination_as_interrupt
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.delivery.courier import Courier
from hpt_mlflow.tracking.delivery.guard import Guard
from hpt_mlflow.tracking.delivery.model_entries import Alias, Model, Version
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.run_entries import End, Files, Metrics, Params, State, Tags
from hpt_mlflow.tracking.delivery.spool import Spool, SpoolError, spool_folder
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.nesting import current_run_id, nesting
from hpt_mlflow.tracking.runs.resume import EarlierRun, owner_here
from hpt_mlflow.tracking.runs.start import start
from hpt_mlflow.tracking.runs.system_metrics import check_system_metrics, system_metrics

# How long the end of a run waits for a server that does not answer: of a finished run, and of an interrupted one.
PATIENCE_SECONDS = 60.0
INTERRUPTED_SECONDS = 10.0
# Side of the small copy of a picture, which MLflow's charts show.
THUMBNAIL = 256

log = logging.getLogger("hpt_mlflow")


class EndedEarly(Exception):  # noqa: N818
    """Raised by the block of a run that ends early without an error: the run is KILLED."""


class NotDeliveredError(HptError):
    """The work is done, but the tracking server has not received all of it."""


class StageRun:
    """The MLflow run of a stage. No method waits for the server, unless its docstring says so.

    Methods that write files return a future: done when MLflow has the files, failed with `SpoolError` if they could
    not even be written to disk (see `failure`).

    Attributes:
        run_id: MLflow's identifier.
        history: metrics that were logged before this process resumed the run: steps, and values by name.
    """

    def __init__(self, run_id: str, experiment_id: str, courier: Courier, history: list[tuple[int, dict[str, float]]]):
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.history = history
        self._courier = courier
        self._tables: list[dict[str, str]] = []
        self._warnings: list[str] = []
        self._logged = {(step, name) for step, values in history for name in values}

    def metrics(
        self, values: Mapping[str, float], step: int, model: str | None = None, dataset: Dataset | None = None
    ) -> None:
        """Log metrics of a step, but for those that the run had at this step before it was resumed.

        Args:
            model: name or id of a LoggedModel that they belong to as well.
            dataset: an input of the run that they were measured on: `mlflow.search_logged_models(datasets=...)` finds
                models by it.
        """
        now = time.time_ns() // 1_000_000
        measured_on = (dataset.name, dataset.digest) if dataset else ()
        new = [
            (name, float(value), now, step, model, *measured_on)
            for name, value in values.items()
            if (step, name) not in self._logged
        ]
        if new:
            self._courier.put(Metrics(new))

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings as they were resolved."""
        self._courier.put(Params({tag.setting_param(name): valid_unicode(str(values[name])) for name in values}))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._courier.put(Tags({name: valid_unicode(str(value)) for name, value in values.items()}))

    def describe(self, markdown: str) -> None:
        """Set the description that the UI shows."""
        self.tags({tag.DESCRIPTION: markdown})

    def warn(self, text: str) -> None:
        """Warn the user, now and in the run's tag `hpt.warning`."""
        log.warning("%s", text)
        self._warnings.append(text)
        self.tags({tag.WARNING: "; ".join(self._warnings)})

    def files(self, names: Sequence[str], write: Callable[[Path], None]) -> Future[str]:
        """Log artifacts.

        Args:
            write: writes files of these names into a folder; called later, by another thread.
        """
        return self._courier.put(Files(list(names)), write)

    def text(self, text: str, file: str) -> Future[str]:
        """Log a text as an artifact."""

        def write(folder: Path) -> None:
            (folder / file).write_text(text)

        return self.files([file], write)

    def picture(self, image: Figure | Image.Image, file: str) -> Future[str]:
        """Log a picture as an artifact."""
        return self.files([file], lambda folder: _save(image, folder / file))

    def image(self, image: Figure | Image.Image, key: str, step: int) -> None:
        """Log a picture on the step axis: MLflow's charts show those of a key one step after another."""
        # As `MlflowClient.log_image` names them; without what differs when a step is repeated.
        name = f"images/{key}+step+{step}+timestamp+{step}+{uuid5(NAMESPACE_OID, f'{self.run_id} {key} {step}')}"

        def write(folder: Path) -> None:
            file = folder / f"{name}.png"
            file.parent.mkdir()
            _save(image, file)
            with Image.open(file) as whole:
                whole.thumbnail((THUMBNAIL, THUMBNAIL))
                whole.save(folder / f"{name}+compressed.webp")

        self.files([f"{name}.png", f"{name}+compressed.webp"], write)
        self.tags({tag.LOGGED_IMAGES: "True"})

    def table(self, rows: Mapping[str, list[Any]], file: str) -> None:
        """Log a table, columns by name, as a JSON artifact that the UI shows as a table."""
        # In the format of `mlflow.log_table`, which would append to a table of the same name.
        self.text(pd.DataFrame(dict(rows)).to_json(orient="split", index=False), file)
        if not any(table["path"] == file for table in self._tables):
            self._tables += [{"path": file, "type": "table"}]
        self.tags({tag.LOGGED_TABLES: json.dumps(self._tables)})

    def state(self, step: int, write: Callable[[Path], None]) -> Future[str]:
        """Keep a training state; see `TrainingState.write`. The run keeps the last two."""
        return self._courier.put(State(step), write)

    def model(
        self, name: str, step: int, params: Mapping[str, str], tags: Mapping[str, str], save: Callable[[Path], None]
    ) -> Future[str]:
        """Keep what `save` writes with `mlflow.pyfunc.save_model` as a LoggedModel of the run."""
        return self._courier.put(Model(name, step, params, tags), save)

    def failure(self, written: Future[str]) -> str:
        """Why files could not be written to disk, or empty; waits for the disk."""
        self._courier.wait_until_written()
        error = written.exception() if written.done() else None
        return str(error) if isinstance(error, SpoolError) else ""

    def flush(self, patience_seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until the server has received everything; gives why it has not, or nothing."""
        left = self._courier.flush(patience_seconds)
        return self._courier.why(left) if left else ""

    def register(self, model: str, model_name: str, tags: dict[str, str], alias: str | None, description: str) -> str:
        """Register a model of the run as a version of a registered model, and wait for the server.

        Args:
            model: its name.
            description: new description of the run; `VERSION_PLACEHOLDER` in it becomes the version's address.

        Returns:
            The address, `models:/NAME/VERSION`.

        Raises:
            NotDeliveredError: the server has not registered it in time.
        """
        answer = self._courier.put(Version(model, model_name, tags, alias, description))
        left = self._courier.flush(_patience(PATIENCE_SECONDS))
        if answer.done():
            return answer.result()
        raise NotDeliveredError(
            f"the training is done, but MLflow has not received its result ({self._courier.why(left)}), which waits in "
            f"{self._courier.spool.folder}",
            f"`hpt sync` sends it and registers it as {model_name}",
        )

    def point(self, alias: str, model: str) -> None:
        """Move an alias to a version that is there already, `models:/NAME/VERSION`."""
        name, version = model.removeprefix("models:/").split("/")
        self._courier.put(Alias(name, version, alias))

    def end(self, status: str, patience_seconds: float) -> str:
        """End the run; gives why some of its entries were not delivered, or nothing."""
        end_time = time.time_ns() // 1_000_000
        # A stage is not finished before its version is registered.
        self._courier.put(End(status, end_time, after=Version.kind))
        if status == "FINISHED":
            # There is nothing left to resume.
            self._courier.drop_states(keep=0)
            left = self._courier.flush(patience_seconds)
            if any(parcel.entry.kind == Version.kind and parcel.refusal for parcel in left):
                self._courier.put(End("FAILED", end_time))
        left = self._courier.close(patience_seconds)
        spool = self._courier.spool
        spool.close()
        if not left:
            return ""
        if all(parcel.entry.unwritten for parcel in left):
            why = self._courier.why(left)
            return f"{len(left)} entries are lost: neither {spool.folder} nor MLflow accepted them ({why})"
        waiting = "1 entry waits" if len(left) == 1 else f"{len(left)} entries wait"
        return f"{waiting} in {spool.folder} ({self._courier.why(left)}); `hpt sync` tries again"


@contextmanager
def stage_run(name: str, identity: Identity | None = None, earlier: EarlierRun | None = None) -> Iterator[StageRun]:
    """Start a run, or continue the one that `mlflow run` made or an earlier one, and end it with its true status.

    FINISHED when the block ends, KILLED on Ctrl-C or SIGTERM, FAILED on any other exception. If this process is killed,
    its guard sets the status.

    Args:
        name: of the run, unless the user gave it one.
        identity: what makes it the same work as another run.
        earlier: the unfinished run to resume.

    Raises:
        NotDeliveredError: the block is done, but the tracking server has not received all of its entries.
    """
    check_system_metrics()
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        with tracking_errors("cannot start a run"):
            started, mlflow_run_id, history = start(name, identity, earlier, current_run_id())
        info = started.info
        spool = earlier.spool if earlier else None
        try:
            spool = spool or Spool.open(spool_folder(info.run_id), owner_here(started))
            courier = Courier(spool, RunClient(info.run_id, info.experiment_id), name)
        except Exception:
            if spool:
                spool.close()
            MlflowClient().set_terminated(info.run_id, "FAILED")
            raise
        if mlflow_run_id and not os.environ.get("HPT_DETACHED") and not joins_others():
            stack.enter_context(end_with_parent())
        guard = Guard(spool.folder, mlflow_run_id)
        run = StageRun(info.run_id, info.experiment_id, courier, history)
        if guard.missing:
            run.warn(guard.missing)
        status = "FAILED"
        try:
            with tracking_errors("tracking"), nesting(info), system_metrics(info, run.metrics):
                yield run
            status = "FINISHED"
        except NotDeliveredError:
            status = "FINISHED"
            raise
        except EndedEarly:
            status = "KILLED"
            raise
        except KeyboardInterrupt:
            status = "KILLED"
            ignore_signals()
            raise
        finally:
            left = run.end(status, _patience(PATIENCE_SECONDS if status == "FINISHED" else INTERRUPTED_SECONDS))
            guard.send(status)
            if left:
                log.warning("%s: %s", name, left)
        if left:
            raise NotDeliveredError(f"{name} is done, but {left}")


def _save(image: Figure | Image.Image, file: Path) -> None:
    (image.savefig if isinstance(image, Figure) else image.save)(file)


def _patience(seconds: float) -> float:
    """HPT_PATIENCE_SECONDS if it is set."""
    with suppress(ValueError):
        return float(os.environ.get("HPT_PATIENCE_SECONDS", ""))
    return seconds
