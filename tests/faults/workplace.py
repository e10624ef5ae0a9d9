"""A folder in which real trainings run as a user starts them, and questions about what became of them."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from mlflow.tracking import MlflowClient
from processes import PATIENCE_SECONDS
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
SMALL = {
    "data": "builtin:digits",
    "arch": "shufflenet_v2_x0_5",
    "image-size": 16,
    "batch-size": 32,
    "precision": "float32",
    "compile": "off",
    "milestones": "50%",
}


@dataclass
class Workplace:
    folder: Path
    tracking_uri: str

    @property
    def spool(self):
        return self.folder / "spool"

    @property
    def client(self):
        return MlflowClient(self.tracking_uri, self.tracking_uri)

    def environment(self, **more):
        return os.environ | {
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "HPT_SPOOL": str(self.spool),
            "HPT_CACHE": str(self.folder / "cache"),
            "HPT_PATIENCE_SECONDS": "20",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def start(self, *words, **more):
        """Start a command; its words go to files that `told` and `said` read."""
        with open(self.folder / "stdout.txt", "w") as stdout, open(self.folder / "stderr.txt", "w") as stderr:
            return subprocess.Popen(
                [BIN / words[0], *map(str, words[1:])],
                cwd=self.folder,
                env=self.environment(**more),
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def pretrain(self, environment=None, **options):
        words = [word for name, value in (SMALL | options).items() for word in (f"--{name.replace('_', '-')}", value)]
        return self.start("hpt", "pretrain", *words, **(environment or {}))

    def told(self):
        return (self.folder / "stdout.txt").read_text()

    def said(self):
        return (self.folder / "stderr.txt").read_text()

    def finish(self, process, seconds=PATIENCE_SECONDS):
        code = process.wait(seconds)
        assert "Traceback" not in self.said(), self.said()
        return code

    def hpt(self, *words, **more):
        return subprocess.run(
            [BIN / "hpt", *words],
            check=False,
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
        )

    def spooled_step(self):
        """The newest step of which a metric waits in the spool: how far a training that runs has come."""
        steps = [0]
        for file in self.spool.glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                steps += [metric[3] for metric in json.loads(file.read_text())["payload"]["metrics"]]
        return max(steps)

    def runs(self):
        return self.client.search_runs(["0"], "tags.`hpt.fingerprint` != ''")

    def loss_curve(self, run):
        history = self.client.get_metric_history(run.info.run_id, "train/loss")
        return [(metric.step, metric.value) for metric in history]

    def weights(self, version):
        run_source = self.client.get_model_version("hpt", str(version)).source
        model = self.client.get_logged_model(next(part for part in run_source.split("/") if part.startswith("m-")))
        return load_file(next(Path(model.artifact_location.removeprefix("file://")).rglob("*.safetensors")))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
