"""What tracking, training states and the spool cost a training, in processor time.

    make bench
    python benchmarks/tracking_cost.py --store postgresql+s3 --store https://mlflow.example.org

Blocks of steps with and without tracking take turns within one training. A block with tracking has all that a whole
interval between training states has by default: a training state, a milestone, and a report every 50 steps, each
delivered by itself. But it is only a small part as long as the interval, so that the noise of its steps weighs little.
The difference of the processor time of the two blocks of a pair, as a share of that of a whole interval, is the cost.

Processor time is that of the training's process: other work on the machine, and waiting for the server, do not count.
The part of it that can be counted directly is printed too: the training's own calls, and the two threads that write and
deliver. `postgresql+s3` takes Debian's postgresql and `hpt_mlflow[dev]`; an address may name any MLflow server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import mlflow
import numpy as np
import torch
from one_speed import CLIPART
from scipy.stats import t as student

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import channel_statistics
from hpt_mlflow.interval import Interval
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

# PostgreSQL and S3, as the tests start them.
sys.path += [str(Path(__file__).parent.parent / "tests" / folder) for folder in ("", "faults")]
from team import BUCKET, free_port, is_there, object_store, postgres

WARM_UP_STEPS = 20
# A busy machine may take long to answer.
PATIENCE_SECONDS = 600.0
SQLITE, SERVER, TEAM, TEAM_DIRECT = "sqlite", "server", "postgresql+s3", "postgresql+s3, direct"


class Pair(NamedTuple):
    """Processor time of a block without and of one with tracking; of the latter, what is counted directly. Seconds."""

    without: float
    with_: float
    calls: float
    threads: float


@click.command()
@click.option("--data", default=str(CLIPART) if CLIPART.is_dir() else "builtin:noto", show_default=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--interval", default=1000, show_default=True, help="Steps between training states: checkpoint_every.")
@click.option("--milestones", default=1, show_default=True, help="Milestones in an interval.")
@click.option("--block", default=40, show_default=True, help="Steps of a block.")
@click.option("--pairs", default=12, show_default=True, help="Blocks with, and blocks without, against each store.")
@click.option(
    "--store",
    "stores",
    multiple=True,
    default=(SQLITE, SERVER),
    show_default=True,
    help=f"{', '.join(map(repr, (SQLITE, SERVER, TEAM, TEAM_DIRECT)))}, which it starts, or an address.",
)
@click.option("--device", default="auto", show_default=True)
def main(
    data: str,
    arch: str,
    image_size: int,
    batch_size: int,
    interval: int,
    milestones: int,
    block: int,
    pairs: int,
    stores: Sequence[str],
    device: str,
) -> None:
    """Print what tracking costs an interval, in milliseconds and as a share of its processor time, for each store."""
    reports = interval // LONGEST_REPORT
    if block % reports:
        raise click.UsageError(f"--block {block} is not a multiple of the {reports} reports of an interval")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HPT_SPOOL": f"{folder}/spool", "HPT_CACHE": f"{folder}/cache"}
        trainer, batches, card = set_up(data, arch, image_size, batch_size, resolve_device(device))
        # A pair of blocks in each store is for warming up.
        trainer.plan = replace(trainer.plan, steps=WARM_UP_STEPS + 2 * len(stores) * (pairs + 1) * block)
        steps = trainer.train(batches, 0, block // reports)
        for _ in range(WARM_UP_STEPS):
            next(steps)
        for number, store in enumerate(stores):
            place = Path(folder) / str(number)
            place.mkdir()
            with STORES.get(store, partial(at_address, store))(place):
                connect()
                with stage_run("bench") as run:
                    measured = [
                        measure(steps, block, run, trainer, card, milestones, i % 2 == 0) for i in range(pairs + 1)
                    ]
            rows.append(row(store, measured[1:], block, interval))
    print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {trainer.device}")
    precision = trainer.plan.precision
    print(f"{arch}, {image_size} px, batch {batch_size}, {precision}, {data}")
    print(f"{pairs} pairs of {block} steps; {milestones=} in {interval} steps\n")
    print(f"| store | ms per step | ms per {interval} steps | share of them (95%) | calls | threads |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")


def row(store: str, measured: Sequence[Pair], block: int, interval: int) -> str:
    """A line of the table."""
    without, with_, calls, threads = (np.array(column) for column in zip(*measured, strict=True))
    whole = without.mean() / block * interval
    cost = mean_of(with_ - without)
    share = f"{cost.value / whole:.2%} ({cost.low / whole:.2%} to {cost.high / whole:.2%})"
    direct = f"{calls.mean() / whole:.2%} | {threads.mean() / whole:.2%}"
    return f"| {store} | {1000 * whole / interval:.1f} | {1000 * cost.value:.0f} | {share} | {direct} |"


def mean_of(values: np.ndarray) -> Interval:
    """The mean of differences of pairs, float64 (pairs,), with its 95% interval by Student's t."""
    mean = float(values.mean())
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return Interval(mean, mean - half, mean + half)


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
    steps: Iterator[Progress],
    block: int,
    run: StageRun,
    trainer: Trainer,
    card: BackboneCard,
    milestones: int,
    without_first: bool,
) -> Pair:
    """A pair of blocks; the order takes turns, so that a machine that becomes slower does not count as a cost."""
    without = steps_alone(steps, block) if without_first else 0.0
    threads, began, calls = -threads_seconds(), time.process_time(), 0.0
    for i in range(block):
        step, metrics = next(steps)
        called = time.thread_time()
        if i < milestones:
            log_backbone(run, trainer.backbone, replace(card, step=step), {})
        if i == block // 2:
            run.state(step, trainer.state({}).write)
        if metrics:
            run.metrics(metrics, step)
            left = run.flush(PATIENCE_SECONDS)
            assert not left, left
        calls += time.thread_time() - called
    with_ = time.process_time() - began
    threads += threads_seconds()
    return Pair(without if without_first else steps_alone(steps, block), with_, calls, threads)


def steps_alone(steps: Iterator[Progress], block: int) -> float:
    """Processor time of a block without tracking."""
    began = time.process_time()
    for _ in range(block):
        next(steps)
    return time.process_time() - began


def threads_seconds() -> float:
    """Processor time of the threads that write and deliver, so far."""
    ticks = 0
    for thread in threading.enumerate():
        if thread.name.startswith("hpt_"):
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def at_address(uri: str, folder: Path) -> Iterator[None]:
    """A store that is there already."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("hpt-tracking-cost")
    yield


@contextmanager
def sqlite_store(folder: Path) -> Iterator[None]:
    """A store in a file."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("bench", artifact_location=f"{folder}/artifacts")
    mlflow.set_experiment("bench")
    yield


@contextmanager
def server_on_sqlite(folder: Path) -> Iterator[None]:
    """A server with a store of its own."""
    options = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/served"]
    with server(folder, options):
        yield


@contextmanager
def server_of_a_team(direct: bool, folder: Path) -> Iterator[None]:
    """A server with PostgreSQL and S3, which clients reach through the server or themselves."""
    with postgres() as database, object_store(folder) as port:
        # The server's, and where artifacts are direct, the client's.
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "team",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
        bucket = f"s3://{BUCKET}/mlflow"
        artifacts = (
            ["--no-serve-artifacts", "--default-artifact-root", bucket]
            if direct
            else ["--artifacts-destination", bucket]
        )
        with server(folder, ["--backend-store-uri", database.uri, *artifacts]):
            yield


@contextmanager
def server(folder: Path, options: Sequence[str]) -> Iterator[None]:
    """`mlflow server` on loopback."""
    uri = f"http://127.0.0.1:{(port := free_port())}"
    mlflow_command = shutil.which("mlflow", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    words = [str(mlflow_command), "server", "--port", str(port), "--workers", "1", *options]
    with open(folder / "server.txt", "w") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
    try:
        while not is_there(f"{uri}/health"):
            time.sleep(0.5)
        with at_address(uri, folder):
            yield
    finally:
        process.terminate()
        process.wait()


STORES = {
    SQLITE: sqlite_store,
    SERVER: server_on_sqlite,
    TEAM: partial(server_of_a_team, False),
    TEAM_DIRECT: partial(server_of_a_team, True),
}


if __name__ == "__main__":
    main()
