"""A stage's run: started with its name and settings, fed with metrics in batches, and ended in its true state."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from hpt_mlflow.tracking.connection import reason, tracking_errors
from hpt_mlflow.tracking.last_word import leave_last_word

FLUSH_SECONDS = 5.0
FLUSH_METRICS = 500
# MLflow's limit on metrics in a batch is 1000.
BATCH = 900
NAME_BY_MLFLOW = re.compile(r"[a-z]+-[a-z]+-\d+")

log = logging.getLogger("hpt_mlflow")


class StageRun:
    """The MLflow run of a stage.

    Attributes:
        run_id: MLflow's identifier.
    """

    def __init__(self, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._client = MlflowClient()
        self._waiting: list[Metric] = []
        self._flushed_at = time.monotonic()
        self._failing = False

    def metrics(self, values: Mapping[str, float], step: int, model_id: str | None = None) -> None:
        """Take metrics at a step; they go out in batches.

        Args:
            model_id: a LoggedModel that they belong to as well.
        """
        now = time.time_ns() // 1_000_000
        self._waiting += [
            Metric(key, float(value), now, step, model_id=model_id, run_id=self.run_id) for key, value in values.items()
        ]
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS or len(self._waiting) > FLUSH_METRICS:
            self.flush()

    def flush(self) -> None:
        """Send what waits. Where the server does not answer, it goes on waiting, and training goes on."""
        self._flushed_at = time.monotonic()
        try:
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:BATCH])
                del self._waiting[:BATCH]
            self._failing = False
        except (MlflowException, OSError) as error:
            if not self._failing:
                log.warning("metrics wait: %s", reason(error))
            self._failing = True

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings as they were resolved, under a prefix apart from what `mlflow run` logs."""
        params = [Param(f"settings/{name}", str(value)) for name, value in values.items()]
        self._client.log_batch(self.run_id, params=params)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def describe(self, markdown: str) -> None:
        """Set the description that the UI shows."""
        self.tags({"mlflow.note.content": markdown})

    def picture(self, image: Figure | Image.Image, file: str) -> None:
        """Log a picture as an artifact."""
        if isinstance(image, Figure):
            mlflow.log_figure(image, file)
        else:
            mlflow.log_image(image, file)

    def table(self, rows: Mapping[str, list[Any]], file: str) -> None:
        """Log a table, columns by name, as a JSON artifact that the UI shows as one."""
        mlflow.log_table(dict(rows), file)

    def folder(self, fill: Callable[[Path], None], name: str) -> None:
        """Log a folder of files, written by `fill`, as the artifact folder `name`."""
        with tempfile.TemporaryDirectory() as temporary:
            fill(Path(temporary))
            mlflow.log_artifacts(temporary, name)


@contextmanager
def stage_run(name: str) -> Iterator[StageRun]:
    """Start a run, or go on with the one that `mlflow run` made, and end it in its true state.

    FINISHED when the block ends, KILLED on Ctrl-C or SIGTERM, FAILED on any other exception. Waiting metrics are sent
    on each of these ways.

    Args:
        name: of the run, unless the user gave it one.
    """
    # start_run goes on with the run of `mlflow run` and forgets that it did.
    made_by_mlflow_run = "MLFLOW_RUN_ID" in os.environ
    with _termination_as_interrupt():
        with tracking_errors("cannot start a run"):
            active = mlflow.start_run(
                run_name=None if made_by_mlflow_run else name, nested=mlflow.active_run() is not None
            )
            run = StageRun(active.info.run_id, active.info.experiment_id)
            if NAME_BY_MLFLOW.fullmatch(active.info.run_name or ""):
                run.tags({"mlflow.runName": name})
        status = RunStatus.FAILED
        try:
            with tracking_errors("tracking"):
                yield run
            status = RunStatus.FINISHED
        except KeyboardInterrupt:
            status = RunStatus.KILLED
            raise
        finally:
            _ignore_signals()
            run.flush()
            mlflow.end_run(RunStatus.to_string(status))
            if made_by_mlflow_run and status == RunStatus.KILLED:
                leave_last_word(run.run_id)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and give both their old meaning back at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """`mlflow run` answers Ctrl-C by terminating us as well: the run's last words must not be cut off by that."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
