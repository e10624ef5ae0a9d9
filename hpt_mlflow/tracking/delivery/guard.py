"""A small process that outlives each run's own process and sets the run's status if that one is killed.

It waits at the other end of a pipe. A run that ends by itself sends its status. If the pipe closes without one, the
process was killed: the guard delivers what it left in its spool, and marks the run KILLED.

`mlflow run` marks an interrupted or killed run FAILED, whatever its status: it means to do so only for runs without a
final status, but compares the status's name with numbers (`_maybe_set_run_terminated` in
mlflow/projects/__init__.py). The guard waits for that, and sets it back to KILLED.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.subprocesses import start_python

LOG_FILE = "guard.log"
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
GOODBYE_SECONDS = 5.0


class Guard:
    """The end of the pipe that a run's own process holds.

    Attributes:
        missing: why it could not be started; the run has no guard then. Empty if it runs.
    """

    def __init__(self, spool_folder: Path, mlflow_run_id: str) -> None:
        """
        Args:
            mlflow_run_id: the run that `mlflow run` made for this process, or nothing.
        """
        self.missing = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with open(spool_folder / LOG_FILE, "wb") as log:
                self._process = start_python(
                    __name__,
                    str(spool_folder),
                    mlflow_run_id,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    # Where a failure of the guard can be read.
                    stderr=log,
                    # What kills the process group of the training must not kill the guard.
                    start_new_session=True,
                )
        except (HptError, OSError) as error:
            self.missing = (
                f"no process guards this run: {one_line(error)}; if the run's own process is killed, `hpt sync` "
                "delivers what it leaves"
            )

    def send(self, status: str) -> None:
        """Send the status that the run ended with. If nothing is left to do, the guard ends at once."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(status.encode())
            self._process.stdin.close()
        if status != "KILLED":
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GOODBYE_SECONDS)


def finish(spool_folder: Path, mlflow_run_id: str, status: str) -> None:
    """Do what is left to do after the run's process has sent its status, or died without one (empty)."""
    # MLflow takes seconds to import: not before it is needed.
    if not status:
        from hpt_mlflow.tracking.connection import prepare
        from hpt_mlflow.tracking.delivery.spool import LOCK_SECONDS
        from hpt_mlflow.tracking.delivery.sync import sync

        prepare()
        # A killed process may close the pipe before it releases the lock.
        sync(spool_folder, PATIENCE_SECONDS, LOCK_SECONDS)
    if mlflow_run_id and status in ("", "KILLED"):
        restore_killed(mlflow_run_id)


def restore_killed(run_id: str) -> None:
    """Wait until `mlflow run` marks the run FAILED, and set it back to KILLED; give up after `PATIENCE_SECONDS`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        # The server may be away for a moment.
        with suppress(Exception):
            run = client.get_run(run_id)
            if run.info.status == "FAILED":
                client.set_terminated(run_id, "KILLED", run.info.end_time)
                return
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    finish(Path(sys.argv[1]), sys.argv[2], sys.stdin.read())
