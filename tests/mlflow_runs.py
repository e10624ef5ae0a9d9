"""The project's entry points as a user calls them: the real `mlflow run`, against a real sqlite store."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow

ROOT = Path(__file__).resolve().parents[1]


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
