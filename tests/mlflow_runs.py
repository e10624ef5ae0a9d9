"""The project's entry points as a user calls them: the real `mlflow run`, against a real sqlite store; and stores that
several tests share."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def store_for_copies(folder, empty_database):
    """An MLflow store in a folder, where the block works; gives its database, of which each test takes a copy."""
    database = shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("HPT_CACHE", str(folder / "cache"))
        patched.setenv("HPT_SPOOL", str(folder / "spool"))
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        mlflow.set_tracking_uri(None)
        yield database
        mlflow.set_registry_uri("")
        os.environ.pop("MLFLOW_REGISTRY_URI", None)


def environment(folder):
    return os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "HPT_CACHE": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def command(entry_point, **parameters):
    words = ["mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager", "local"]
    return words + [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]


def mlflow_run(folder, entry_point, **parameters):
    return subprocess.run(
        command(entry_point, **parameters),
        check=False,
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
    )


def newest(stage):
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`hpt.stage` = '{stage}'", output_format="list", max_results=1
    )[0]
