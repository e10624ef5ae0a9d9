"""From a command to its first step, part by part: the first start on a set of images, and the second.

    python benchmarks/start_speed.py                                    # a folder of 50,000 files of 3 KB
    python benchmarks/start_speed.py --images 1000000 --listed          # a million in a list; takes 5 GB of disk

The second start trains the same network with another seed: it finds what the first has cached.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from training_speed import last_words

from hpt_mlflow.cores import available_cores
from hpt_mlflow.machine import processor

FILES_PER_FOLDER = 1_000
DIFFERENT_PICTURES = 1_000
# Each part begins where this function is called, and ends where the next one begins.
PARTS = (
    ("stages.pretrain:_start", "the network"),
    ("stages.pretrain:open_dataset", "the names of the files"),
    ("stages.pretrain:connect", "MLflow's store"),
    ("stages.training.learn:identify", "the contents of the files, and earlier runs of the same work"),
    ("stages.training.prepare:split_for", "the split"),
    ("stages.training.prepare:_open_images", "images into the cache"),
    ("stages.training.prepare:_choose_arithmetic", "precision and compiler"),
    ("stages.training.prepare:_channel_statistics", "channel statistics"),
    ("stages.training.prepare:Trainer", "trainer and judge"),
    ("stages.training.learn:stage_run", "the run, and what it says before the training"),
    ("stages.training.learn:_train", "first step"),
)
IMPORTS = "interpreter and imports"


@click.command()
@click.option("--images", default=50_000, show_default=True)
@click.option("--listed", is_flag=True, help="As a list instead of a folder.")
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--child", hidden=True, help="Of the process that is measured: when it was started.", type=float)
@click.argument("arguments", nargs=-1)
def main(
    images: int,
    listed: bool,
    arch: str,
    image_size: int,
    batch_size: int,
    child: float | None,
    arguments: tuple[str, ...],
) -> None:
    """Print a Markdown table of the seconds of each part."""
    if child is not None:
        print(json.dumps(parts_of(child, arguments)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_images(folder, images, listed)
        shape = ["--arch", arch, "--image-size", str(image_size), "--batch-size", str(batch_size)]
        starts = [start(folder, "--data", data, *shape, "--steps", "1", "--seed", seed) for seed in ("0", "1")]
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        print(f"{processor()}, {available_cores()} cores, torch {torch.__version__}, {device}")
        print(
            f"{images} JPEG files in a {'list' if listed else 'folder'}; {arch}, {image_size} px, batch {batch_size}\n"
        )
        print("| part | first start, s | second start, s |\n|---|---:|---:|")
        for part in starts[0]:
            print(f"| {part} | {' | '.join(f'{one[part]:.1f}' for one in starts)} |")
        print(f"| **all** | {' | '.join(f'**{sum(one.values()):.1f}**' for one in starts)} |", flush=True)


def make_images(folder: Path, count: int, listed: bool) -> str:
    """JPEG files that all differ, by bytes behind their end; gives the address of the data."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(min(count, DIFFERENT_PICTURES)):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(file, "JPEG", quality=60)
        pictures.append(file.getvalue())
    names = [f"images/{number // FILES_PER_FOLDER}/{number}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        if number % FILES_PER_FOLDER == 0:
            (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(pictures[number % len(pictures)] + number.to_bytes(8, "little"))
    if not listed:
        return str(folder / "images")
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return f"list:{folder / 'list.txt'}"


def start(folder: Path, *arguments: str) -> dict[str, float]:
    """The seconds of each part of `hpt pretrain`, in a process of its own."""
    places = {"HPT_CACHE": "cache", "HPT_SPOOL": "spool", "MLFLOW_TRACKING_URI": "mlflow.db"}
    variables = {name: str(folder / place) for name, place in places.items()}
    variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{variables['MLFLOW_TRACKING_URI']}"
    command = [sys.executable, __file__, "--child", repr(time.time()), "--", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | variables, cwd=folder)
    if done.returncode:
        raise click.ClickException(last_words(done))
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def parts_of(began: float, arguments: tuple[str, ...]) -> dict[str, float]:
    """Train a step; the seconds of each part, and the rest of the time until the first step as its last part."""
    began_at = [(IMPORTS, began)]
    for place, part in PARTS:
        module, _, name = place.partition(":")
        owner = importlib.import_module(f"hpt_mlflow.{module}")
        setattr(owner, name, _noting(getattr(owner, name), part, began_at))
    ended = _until_first_step()
    from hpt_mlflow.cli import hpt

    hpt(["pretrain", *arguments], standalone_mode=False)
    times = [when for _, when in began_at] + ended[:1]
    return {part: later - when for (part, when), later in zip(began_at, times[1:], strict=True)}


def _noting(function: Callable[..., Any], part: str, began_at: list[tuple[str, float]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        if part not in dict(began_at):
            began_at.append((part, time.time()))
        return function(*args, **kwargs)

    return noting


def _until_first_step() -> list[float]:
    """When the steps of the training ended, as they do."""
    from hpt_mlflow.training.loop import Trainer

    train, ended = Trainer.train, []

    def noting(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        for step in train(self, *args, **kwargs):
            ended.append(time.time())
            yield step

    Trainer.train = noting  # type: ignore[method-assign]
    return ended


if __name__ == "__main__":
    main()
