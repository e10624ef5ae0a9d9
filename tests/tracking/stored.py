"""What a run is in the tracking store, and a store that is away for a while."""

import sqlite3
from contextlib import contextmanager

from mlflow.tracking import MlflowClient


def data(run_id):
    return MlflowClient().get_run(run_id).data


def tags(run_id):
    return data(run_id).tags


def status(run_id):
    return MlflowClient().get_run(run_id).info.status


def losses(run_id):
    return [(metric.step, metric.value) for metric in MlflowClient().get_metric_history(run_id, "loss")]


@contextmanager
def outage(folder):
    """The store answers with errors only for the block."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("PRAGMA legacy_alter_table = ON")
        database.execute("ALTER TABLE runs RENAME TO runs_elsewhere")
        database.commit()
        yield
        database.execute("ALTER TABLE runs_elsewhere RENAME TO runs")
        database.commit()
