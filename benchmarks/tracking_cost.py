"""What tracking, training states and the spool cost: a training with them beside the same training without.

    make bench
    python benchmarks/tracking_cost.py --pairs 5

Blocks of steps with and without take turns within one training, against a sqlite store and against `mlflow server` on
loopback. A block with tracking has what a block of a long stage has by default: metrics every 50 steps, one training
state, one milestone. Its time ends when MLflow has taken everything, so that no cost hides in the block after it.

The ratio is what counts, but needs a quiet machine and many pairs: it is the difference of two long times. So the time
that the training itself spends on telling, and the processor time of the two threads that write and deliver, are
printed as well, as shares of the block. Their sum is what tracking can cost at most, the server's own work aside.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import numpy as np
import requests
import torch
from one_speed import CLIPART

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import channel_statistics
from hpt_mlflow.machine import processor
from hpt_mlflow.methods import load_method
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.training.prepare import LONGEST_REPORT
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import log_backbone
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run
from hpt_mlflow.training.arithmetic import choose_precision
from hpt_mlflow.training.loop import Progress, Trainer
from hpt_mlflow.training.plan import PRESETS

WARM_UP_STEPS = 20


@click.command()
@click.option("--data", default=str(CLIPART) if CLIPART.is_dir() else "builtin:noto", show_default=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--block", default=1000, show_default=True, help="Steps of a block: the default of checkpoint_every.")
@click.option("--pairs", default=3, show_default=True, help="Blocks with, and blocks without, against each store.")
@click.option("--device", default="auto", show_default=True)
def main(data: str, arch: str, image_size: int, batch_size: int, block: int, pairs: int, device: str) -> None:
    """Print seconds a step without and with tracking, and their ratio, for each store."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HPT_SPOOL": f"{folder}/spool", "HPT_CACHE": f"{folder}/cache"}
        trainer, batches, card = set_up(data, arch, image_size, batch_size, resolve_device(device))
        # Two stores, pairs of blocks in each, and steps before the first.
        trainer.plan = replace(trainer.plan, steps=WARM_UP_STEPS + 4 * pairs * block)
        steps = trainer.train(batches, 0, LONGEST_REPORT)
        for _ in range(WARM_UP_STEPS):
            next(steps)
        for name, store in (("sqlite", sqlite_store), ("mlflow server on loopback", server_on_loopback)):
            with store(Path(folder)) as uri:
                mlflow.set_tracking_uri(uri)
                connect()
                with stage_run("bench") as run:
                    blocks = [measure(steps, block, run, trainer, card) for _ in range(pairs)]
            rows.append((name, blocks))
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {trainer.device}")
    precision = trainer.plan.precision
    print(f"{arch}, {image_size} px, batch {batch_size}, {precision}, {data}; {pairs} pairs of {block} steps\n")
    print("| store | ms/step without | ms/step with | with / without | telling | threads |\n|---|---|---|---|---|---|")
    for name, blocks in rows:
        without, with_, telling, threads = (statistics.median(column) for column in zip(*blocks, strict=True))
        ratios = [block_with / block_without for block_without, block_with, _, _ in blocks]
        spread = f"{statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})"
        shares = f"{telling / with_:.2%} | {threads / with_:.2%}"
        print(f"| {name} | {1000 * without / block:.2f} | {1000 * with_ / block:.2f} | {spread} | {shares} |")


def set_up(
    data: str, arch: str, image_size: int, batch_size: int, device: torch.device
) -> tuple[Trainer, ViewBatches, BackboneCard]:
    """A training as a stage sets it up."""
    dataset = open_dataset(data)
    backbone, feature_size = build_backbone(Architecture(arch, image_size))
    plan = replace(PRESETS["quick"].pretrain, batch_size=batch_size, precision=choose_precision("auto", device))
    images = Images(dataset, np.arange(len(dataset)), smallest_useful_side(image_size, plan.strengths.crop_scale))
    options = load_method(plan.method).fit_options(plan.options, (), batch_size, len(images.indices), processes=1)
    plan = replace(plan, options=options)
    seen = channel_statistics(images.sample)
    card = BackboneCard(Architecture(arch, image_size), feature_size, seen.mean, seen.std, (dataset.name,))
    batches = ViewBatches(images, batch_size, image_size, plan.subset, plan.strengths, plan.seed)
    return Trainer(backbone, feature_size, plan, seen, device), batches, card


def measure(
    steps: Iterator[Progress], block: int, run: StageRun, trainer: Trainer, card: BackboneCard
) -> tuple[float, float, float, float]:
    """Seconds of a block without and of one with tracking; of the latter, spent on telling, and by the two threads."""
    start = time.perf_counter()
    for _ in range(block):
        next(steps)
    middle = time.perf_counter()
    telling, threads = 0.0, -threads_seconds()
    for i in range(block):
        step, metrics = next(steps)
        told_from = time.perf_counter()
        if metrics:
            run.metrics(metrics, step)
        if i == block // 2:
            log_backbone(run, trainer.backbone, replace(card, step=step), {})
            run.state(step, trainer.state({}).write)
        telling += time.perf_counter() - told_from
    left = run.flush()
    assert not left, left
    return middle - start, time.perf_counter() - middle, telling, threads + threads_seconds()


def threads_seconds() -> float:
    """Processor time of the threads that write and deliver, so far."""
    ticks = 0
    for thread in threading.enumerate():
        if thread.name.startswith("hpt_"):
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def sqlite_store(folder: Path) -> Iterator[str]:
    """A store in a file."""
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("bench", artifact_location=f"{folder}/artifacts")
    mlflow.set_experiment("bench")
    yield uri


@contextmanager
def server_on_loopback(folder: Path) -> Iterator[str]:
    """A server with a store of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    mlflow_command = shutil.which("mlflow", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    words = [mlflow_command, "server", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/served"]
    with open(folder / "server.txt", "w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        while not is_up(uri):
            time.sleep(0.5)
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("bench")
        yield uri
    finally:
        server.terminate()
        server.wait()


def is_up(uri: str) -> bool:
    """Whether a server answers."""
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    main()
