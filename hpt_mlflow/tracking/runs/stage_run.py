"""A stage's run: started or continued, told everything by way of its spool, and ended in its true state."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from PIL import Image

from hpt_mlflow.errors import HptError, valid_unicode
from hpt_mlflow.group import joins_others
from hpt_mlflow.signals import end_with_parent, ignore_signals, termination_as_interrupt
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.delivery.courier import Courier
from hpt_mlflow.tracking.delivery.entries import Delivery
from hpt_mlflow.tracking.delivery.guard import Guard
from hpt_mlflow.tracking.delivery.spool import Spool, SpoolError, spool_folder
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.runs.autologging import no_autologging
from hpt_mlflow.tracking.runs.nesting import current_run_id, nesting
from hpt_mlflow.tracking.runs.resume import Earlier, owner_here
from hpt_mlflow.tracking.runs.start import start

# How long a run that ends waits for a server that does not answer: where all is done, and where somebody waits for it.
PATIENCE_SECONDS = 60.0
INTERRUPTED_SECONDS = 10.0

log = logging.getLogger("hpt_mlflow")


class EndedEarly(Exception):  # noqa: N818
    """Raised by the block of a run that ends before its time, with nothing wrong: the run is KILLED."""


class NotDeliveredError(HptError):
    """The work is done, but the tracking server has not taken all of it."""


class StageRun:
    """The MLflow run of a stage. No method waits for the server, unless it says so.

    Attributes:
        run_id: MLflow's identifier.
        history: metrics that were logged before this process went on with the run: steps, and values by name.
    """

    def __init__(self, run_id: str, experiment_id: str, courier: Courier, history: list[tuple[int, dict[str, float]]]):
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.history = history
        self._courier = courier
        self._tables: list[dict[str, str]] = []
        self._warnings: list[str] = []
        self._logged = {(step, name) for step, values in history for name in values}

    def tell(self, kind: str, payload: dict[str, Any], fill: Callable[[Path], None] | None = None) -> Future[str]:
        """Hand over an entry; see `tracking.delivery.Delivery` for the kinds."""
        return self._courier.put(kind, payload, fill)

    def failure(self, answer: Future[str]) -> str:
        """Why something that was told could not even be kept on the disk, or nothing; waits for the disk."""
        self._courier.wait_until_written()
        error = answer.exception() if answer.done() else None
        return str(error) if isinstance(error, SpoolError) else ""

    def metrics(self, values: Mapping[str, float], step: int, model: str | None = None) -> None:
        """Take metrics at a step. What the run has at this step already, from before it was continued, stays.

        Args:
            model: name or id of a LoggedModel that they belong to as well.
        """
        now = time.time_ns() // 1_000_000
        new = [
            (name, float(value), now, step, model) for name, value in values.items() if (step, name) not in self._logged
        ]
        if new:
            self.tell("metrics", {"metrics": new})

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings as they were resolved, under a prefix apart from what `mlflow run` logs."""
        self.tell("params", {tag.setting_param(name): valid_unicode(str(value)) for name, value in values.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self.tell("tags", {name: valid_unicode(str(value)) for name, value in values.items()})

    def describe(self, markdown: str) -> None:
        """Set the description that the UI shows."""
        self.tags({tag.DESCRIPTION: markdown})

    def warn(self, text: str) -> None:
        """Say something that the user should know, now and in the run's tag `hpt.warning`."""
        log.warning("%s", text)
        self._warnings.append(text)
        self.tags({tag.WARNING: "; ".join(self._warnings)})

    def picture(self, image: Figure | Image.Image, file: str) -> None:
        """Log a picture as an artifact."""

        def fill(folder: Path) -> None:
            image.savefig(folder / file) if isinstance(image, Figure) else image.save(folder / file)

        self.tell("artifacts", {"files": [file]}, fill)

    def table(self, rows: Mapping[str, list[Any]], file: str) -> None:
        """Log a table, columns by name, as a JSON artifact that the UI shows as one."""
        # As `mlflow.log_table` writes it, which however adds to a table that is there.
        text = pd.DataFrame(dict(rows)).to_json(orient="split", index=False)

        def fill(folder: Path) -> None:
            (folder / file).write_text(text)

        self.tell("artifacts", {"files": [file]}, fill)
        if not any(table["path"] == file for table in self._tables):
            self._tables += [{"path": file, "type": "table"}]
        self.tags({tag.LOGGED_TABLES: json.dumps(self._tables)})

    def settle(self, patience_seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until the server has taken all that was told; gives why it has not, or nothing."""
        left = self._courier.settle(patience_seconds)
        return self._courier.why(left) if left else ""

    def register(self, model: str, model_name: str, tags: dict[str, str], alias: str | None, description: str) -> str:
        """Make a milestone a version of a registered model, and wait for it.

        Args:
            model: name of the milestone.
            description: of the run from now on; `VERSION_PLACEHOLDER` in it becomes the version's address.

        Returns:
            The address, `models:/NAME/VERSION`.

        Raises:
            NotDeliveredError: the server has not taken it in time.
        """
        payload = {"model": model, "model_name": model_name, "tags": tags, "alias": alias, "description": description}
        answer = self.tell("version", payload)
        left = self._courier.settle(_patience(PATIENCE_SECONDS))
        if answer.done():
            return answer.result()
        raise NotDeliveredError(
            f"the training is done, but MLflow has not taken its result ({self._courier.why(left)}); it is kept in "
            f"{self._courier.spool.folder}, and `hpt sync` sends it and registers it as {model_name}"
        )

    def end(self, status: str, patience_seconds: float) -> str:
        """End the run; gives why some of what it told was not delivered, or nothing."""
        end = {"end_time": time.time_ns() // 1_000_000}
        # A stage is not finished before its version is registered.
        self.tell("end", {"status": status, "after": "version", **end})
        if status == "FINISHED":
            # There is nothing left to resume.
            self._courier.drop_states(keep=0)
            left = self._courier.settle(patience_seconds)
            if any(parcel.entry.kind == "version" and parcel.refusal for parcel in left):
                self.tell("end", {"status": "FAILED", **end})
        left = self._courier.close(patience_seconds)
        spool = self._courier.spool
        spool.close()
        if not left:
            return ""
        if all(parcel.entry.unwritten for parcel in left):
            why = self._courier.why(left)
            return f"{len(left)} entries are lost: neither {spool.folder} nor MLflow took them ({why})"
        waiting = "1 entry waits" if len(left) == 1 else f"{len(left)} entries wait"
        return f"{waiting} in {spool.folder} ({self._courier.why(left)}); `hpt sync` tries again"


@contextmanager
def stage_run(name: str, identity: Identity | None = None, earlier: Earlier | None = None) -> Iterator[StageRun]:
    """Start a run, or go on with the one that `mlflow run` made or an earlier one, and end it in its true state.

    FINISHED when the block ends, KILLED on Ctrl-C or SIGTERM, FAILED on any other exception. A guard sees to it where
    this process cannot.

    Args:
        name: of the run, unless the user gave it one.
        identity: what makes it the same work as another run.
        earlier: the unfinished run to go on with.

    Raises:
        NotDeliveredError: the block is done, but the tracking server has not taken all of what it had to tell.
    """
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        stack.enter_context(no_autologging())
        with tracking_errors("cannot start a run"):
            started = start(name, identity, earlier, current_run_id())
        info = started.run.info
        spool = earlier.spool if earlier else None
        try:
            spool = spool or Spool.open(spool_folder(info.run_id), owner_here(started.run))
            courier = Courier(spool, Delivery(info.run_id, info.experiment_id), name)
        except Exception:
            if spool:
                spool.close()
            MlflowClient().set_terminated(info.run_id, "FAILED")
            raise
        if started.mlflow_run_id and not os.environ.get("HPT_DETACHED") and not joins_others():
            stack.enter_context(end_with_parent())
        guard = Guard(spool.folder, started.mlflow_run_id)
        run = StageRun(info.run_id, info.experiment_id, courier, started.history)
        if guard.missing:
            run.warn(guard.missing)
        status = "FAILED"
        try:
            with tracking_errors("tracking"), nesting(info):
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
            guard.tell(status)
            if left:
                log.warning("%s: %s", name, left)
        if left:
            raise NotDeliveredError(f"{name} is done, but {left}")


def _patience(seconds: float) -> float:
    """HPT_PATIENCE_SECONDS where it is set."""
    with suppress(ValueError):
        return float(os.environ.get("HPT_PATIENCE_SECONDS", ""))
    return seconds
