"""Decoded images among real processes: two that open them at once, one that is killed, and workers."""

import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from hpt_mlflow.data.images import Images

COUNT = 20
# Opens the files, and says what it does. It stops before the tenth image until somebody sends it a line.
OPENING = """
import itertools, logging, sys
import numpy as np
from pathlib import Path
from hpt_mlflow.data import images
from hpt_mlflow.data.dataset import Dataset

def told(picture, *options):
    if next(decoded) == 9:
        print("half", flush=True)
        sys.stdin.readline()
    return decode(picture, *options)

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
images.available_cores = lambda: 1
images.SIZE_SAMPLE = 1
decoded, decode, images.decode = itertools.count(), images.decode, told
files = sorted(Path(sys.argv[1]).iterdir())
dataset = Dataset("some", "folder:some", files, [file.name for file in files], None, ())
opened = images.Images(dataset, np.arange(len(files)), 8, cache_gib=1)
print(next(decoded), sum(int(opened[i][0, 0, 0]) for i in opened.indices), flush=True)
"""


@pytest.fixture
def files(plain_files):
    return plain_files(COUNT)


@pytest.fixture
def start(files):
    """Start a process that opens the files; those that are still there in the end are killed."""
    started = []

    def build():
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", OPENING, files[0].parent]
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield build
    for process in started:
        process.kill()
        process.communicate()


def names(folder):
    return sorted(file.suffix if file.name[0] != "." else "half" for file in folder.iterdir() if file.name != "locks")


def test_of_two_that_open_at_once_one_decodes_and_the_other_waits(start, folder):
    first = start()
    assert first.stdout.readline() == "half\n"
    second = start()
    assert second.stdout.readline().startswith("waiting for another process")
    assert names(folder) == ["half"]
    first.stdin.write("go on\n")
    first.stdin.flush()
    assert first.stdout.readline().split() == [str(COUNT + 1), str(sum(range(COUNT)))]
    assert second.stdout.readline().split() == ["0", str(sum(range(COUNT)))]
    assert names(folder) == [".images"]


def test_one_that_is_killed_half_way_leaves_it_to_the_one_that_waits(start, folder):
    first = start()
    assert first.stdout.readline() == "half\n"
    second = start()
    assert second.stdout.readline().startswith("waiting for another process")
    first.kill()
    assert second.stdout.readline() == "half\n"
    second.stdin.write("go on\n")
    second.stdin.flush()
    assert second.stdout.readline().split() == [str(COUNT + 1), str(sum(range(COUNT)))]
    assert names(folder) == [".images"]


def test_what_a_killed_process_leaves_is_removed_by_the_next(start, folder, files, dataset_of):
    process = start()
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert names(folder) == ["half"]
    images = Images(dataset_of(files), np.arange(COUNT), 8, cache_gib=1)
    assert [int(images[i][0, 0, 0]) for i in range(COUNT)] == list(range(COUNT))
    assert names(folder) == [".images"]


@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_a_worker_maps_the_file(files, dataset_of, how):
    images = Images(dataset_of(files), np.arange(COUNT), 8, cache_gib=1)
    for file in files:
        file.write_bytes(b"no picture")
    loader = DataLoader(
        images, batch_size=None, sampler=[2, 19], num_workers=1, multiprocessing_context=how, collate_fn=np.array
    )
    assert [int(found[0, 0, 0]) for found in loader] == [2, 19]
