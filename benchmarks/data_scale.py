"""What a list of 14 million files, as many as ImageNet-22k has, costs before and while training on it.

    python benchmarks/data_scale.py
    python benchmarks/data_scale.py --images 1000000

The list is made up: names as ImageNet's, with labels over 21,841 classes, of files that are not there. A process of its
own opens it, splits it by its labels, and shuffles what may be seen for three epochs; its memory is all that it ever
took. Then worker processes are forked, and each reads its share of the names of
three epochs: memory that is private to them is what they do not share with their parent.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

CLASSES = 21_841
EPOCHS = 3
LIMIT_SECONDS, LIMIT_BYTES = 60, 1.5e9
LINES_AT_ONCE = 1_000_000


@click.command()
@click.option("--images", default=14_000_000, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--measure", hidden=True, help="Of the process of its own: the list.")
def main(images: int, workers: int, measure: str | None) -> None:
    """Print a Markdown table of the seconds and of the memory that a large list takes."""
    if measure:
        print_measured(measure, workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "list.txt"
        write_list(file, images)
        subprocess.run([sys.executable, __file__, "--measure", str(file), "--workers", str(workers)], check=True)


def write_list(file: Path, images: int) -> None:
    """Write lines such as `n01440764/n01440764_10026.JPEG 17`, in random order of classes as of a shuffled list."""
    labels = np.random.default_rng(0).integers(0, CLASSES, images)
    with open(file, "w") as opened:
        for start in range(0, images, LINES_AT_ONCE):
            for i, label in enumerate(labels[start : start + LINES_AT_ONCE].tolist(), start):
                synset = f"n{1440764 + 37 * label:08}"
                opened.write(f"{synset}/{synset}_{i % 100_000}.JPEG {label}\n")


def print_measured(file: str, workers: int) -> None:
    """Print the table of one list; to be called once in a process, whose memory it tells."""
    from hpt_mlflow.data.sources import open_dataset

    seconds = {}
    started = time.perf_counter()
    dataset = open_dataset(f"list:{file}")
    seconds["open"] = time.perf_counter() - started
    started = time.perf_counter()
    seen = dataset.split(seed=0).seen
    seconds["split"] = time.perf_counter() - started
    started = time.perf_counter()
    for epoch in range(EPOCHS):
        order = np.random.default_rng((0, epoch, 1)).permutation(seen)
    seconds[f"shuffle, {EPOCHS} epochs"] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    print(f"\n{len(dataset):,} images of {len(dataset.classes):,} classes:\n")
    print("| | measured | limit |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} s | |")
    print(f"| all of it | {sum(seconds.values()):.1f} s | {LIMIT_SECONDS} s |")
    print(f"| most memory | {peak / 1e9:.2f} GB | {LIMIT_BYTES / 1e9} GB |")
    sys.stdout.flush()
    if not os.path.exists("/proc/self/smaps_rollup"):
        return
    context = multiprocessing.get_context("fork")
    all_of_them = context.Barrier(workers)
    with context.Pool(workers, initializer=_share, initargs=(dataset, order, workers, all_of_them)) as pool:
        for epochs in range(EPOCHS + 1):
            if epochs:
                pool.map(_read_names, range(workers), chunksize=1)
            private = sum(pool.map(_private_bytes, range(workers), chunksize=1))
            if epochs in (0, EPOCHS):
                print(f"| private memory of {workers} workers after {epochs} epochs | {private / 1e9:.3f} GB | |")


_shared: list = []


def _share(*what: object) -> None:
    """Keep what a worker got from its parent by being forked."""
    _shared[:] = what


def _read_names(part: int) -> int:
    dataset, order, workers, _ = _shared
    return sum(len(dataset.names[i]) for i in order[part::workers])


def _private_bytes(_: int) -> int:
    _shared[-1].wait()  # so that each worker takes one
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    main()
