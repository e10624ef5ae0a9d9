"""Keep an interrupted run KILLED although `mlflow run` calls it FAILED.

After Ctrl-C, `mlflow run` waits for the entry point to end and then marks the run FAILED. It means to do so only where
the run has no final state yet, but compares the state's name with numbers (`_maybe_set_run_terminated` in
mlflow/projects/__init__.py). So the interrupted process leaves this one behind, which has the last word and ends.
"""

from __future__ import annotations

import subprocess
import sys
import time

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0


def leave_last_word(run_id: str) -> None:
    """Start a process of its own that sets the run back to KILLED once it was called FAILED."""
    subprocess.Popen(
        [sys.executable, "-m", __name__, run_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def have_last_word(run_id: str) -> None:
    """Wait until the run is called FAILED, and set it back; give up after `PATIENCE_SECONDS`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        run = client.get_run(run_id)
        if run.info.status == "FAILED":
            client.set_terminated(run_id, "KILLED", run.info.end_time)
            return
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    have_last_word(sys.argv[1])
