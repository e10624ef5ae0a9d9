"""Trainings on folders with every kind of file that could harm them."""

import json
import os
import struct
import subprocess
import sys
import zlib

import mlflow
import numpy as np
import pytest
from PIL import Image

import hpt_mlflow
from hpt_mlflow.data import images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.stages.progress import ProgressDisplay
from hpt_mlflow.stages.training import learn

TINY = {"arch": "shufflenet_v2_x0_5", "image_size": 16, "batch_size": 40, "precision": "float32", "device": "cpu"}
TINY |= {"milestones": "100%", "compile": "off"}
BOMB_MEGABYTES = 50  # far less than the 600 of its pixels, more than two runs differ

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of these files")


def noise(seed, size=(18, 20)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def write_good(folder, count):
    """Many names of 40 images, since it is the names that are counted."""
    folder.mkdir(parents=True)
    for i in range(count):
        if i < 40:
            noise(i).save(folder / f"{i:04}.png")
        else:
            os.link(folder / f"{i % 40:04}.png", folder / f"{i:04}.png")


def write_png(file, width, height, chunks=()):
    """A valid black PNG of any size, written row by row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with open(file, "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)))
        stream.writelines(chunk(kind, data) for kind, data in chunks)
        packer, row = zlib.compressobj(1), bytes(1 + width)
        for _ in range(height):
            if packed := packer.compress(row):
                stream.write(chunk(b"IDAT", packed))
        stream.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))


def write_tile_bomb(file):
    """A TIFF of 64 x 64 pixels in one tile of 30,000 x 30,000."""
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, 30_000), (323, 30_000), (324, 134)]
    packed = zlib.compress(bytes(64 * 64))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (325, len(packed))])
    file.write_bytes(b"II*\0" + struct.pack("<IH", 8, 10) + entries + bytes(4) + packed)


@pytest.fixture
def nested():
    """Put a picture 1,500 folders deep. They are taken away again, as pytest could not."""
    made = []

    def write(folder):
        for _ in range(1500):
            folder = folder / "d"
            folder.mkdir()
            made.append(folder)
        noise(0).save(folder / "deep.png")

    yield write
    (made[-1] / "deep.png").unlink()
    for folder in reversed(made):
        folder.rmdir()


def write_bad(folder):
    """Files that are no pictures although they are named so; gives a word of the reason by name."""
    whole = (folder / "0000.png").read_bytes()
    noise(0, (64, 64)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text\nof two lines.webp").write_text("no picture\nat all")
    (folder / os.fsdecode(b"caf\xe9.gif")).write_bytes(bytes(1000))
    noise(0).save(folder / "script.png", "EPS")
    write_png(folder / "words.png", 8, 8, [(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000)))])
    write_tile_bomb(folder / "tile.tif")
    with open(folder / "sparse.webp", "wb") as sparse:
        sparse.write(b"RIFF\xf0\xff\xff\xffWEBPVP8 ")
        sparse.truncate(1 << 40)
    os.mkfifo(folder / "queue.jpg")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    return {
        "cut.jpg": "truncated",
        "cut.png": "",
        "empty.png": "cannot identify",
        r"text\nof two lines.webp": "cannot identify",
        r"caf\udce9.gif": "cannot identify",
        "script.png": "cannot identify",
        "words.png": "MAX_TEXT_CHUNK",
        "tile.tif": "too many",
        "sparse.webp": "too many",
        "queue.jpg": "not a regular file",
        "endless.jpg": "not a regular file",
        "gone.jpg": "FileNotFoundError",
        "itself.jpg": "symbolic links",
    }


def write_odd(folder, tmp_path):
    """Files and folders that are odd, but harmless; gives the number of pictures in them."""
    frames = [noise(i) for i in range(50)]
    for kind in ("gif", "webp", "tiff", "png"):
        frames[0].save(folder / f"animated.{kind}", save_all=True, append_images=frames[1:])
    noise(0, (1, 1)).save(folder / "pixel.png")
    noise(0, (1, 20_000)).save(folder / "wide.png")
    noise(0, (20_000, 1)).save(folder / "high.png")
    noise(0).save(folder / "wrongly named.jpg", "PNG")
    for name in (
        "two  words.png",
        "猫 \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}.png",
        "a\nb.png",
        os.fsdecode(b"\xff.png"),
    ):
        noise(0).save(folder / name)
    noise(0).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "folder.jpg").mkdir()
    noise(0).save(folder / "folder.jpg" / "inside.png")
    (folder / "folder.jpg" / "up").symlink_to(folder)
    # Pages of a TIFF are images of their own; of the others, the first frame counts.
    return 13 + len(frames)


# Trains with the bomb in each place; says each time what the process took at most until then.
TRAIN = """
import json, os, sys
import hpt_mlflow
folder, settings, bomb = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
for place in sys.argv[3:]:
    os.rename(bomb, place)
    result = hpt_mlflow.pretrain(data=folder, **settings)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(result.run_id, int(peak.split()[1]) // 1024)
"""


def train_alone(folder, *places):
    """Train in a process of its own with the bomb in each place; gives run and peak memory in MB of each."""
    command = [sys.executable, "-c", TRAIN, folder, json.dumps(TINY | {"steps": 2}), *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return [(run_id, int(megabytes)) for run_id, megabytes in map(str.split, done.stdout.splitlines())]


def assert_named(run_id, expected):
    """The run is finished, and names these images, with these words in their reasons."""
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["data/unreadable_images"] == len(expected)
    table = mlflow.load_table("unreadable_images.json", run_ids=[run_id])
    reasons = dict(zip(table["image"], table["reason"], strict=True))
    assert reasons.keys() == expected.keys()
    for name, word in expected.items():
        assert word in reasons[name], name
        assert reasons[name].isprintable(), name


# File by file, by tests/data/test_decode_hostile.py.
@pytest.mark.slow
def test_every_hostile_file_is_skipped_counted_and_named(store, tmp_path, nested):
    folder = tmp_path / "images"
    write_good(folder, 1385)
    odd = write_odd(folder, tmp_path)
    nested(folder)
    bad = write_bad(folder)
    write_png(folder / "bomb.png", 30_000, 20_000)
    bad["bomb.png"] = "600000000 pixels"
    assert len(open_dataset(str(folder))) == 1385 + odd + 1 + len(bad)
    ((run_id, _),) = train_alone(folder, folder / "bomb.png")
    assert_named(run_id, bad)


@pytest.mark.soak
def test_a_bomb_costs_no_memory(store, tmp_path):
    folder, outside = tmp_path / "images", tmp_path / "bomb.png"
    write_good(folder, 400)
    write_png(outside, 30_000, 20_000)
    (calm, least), (run_id, most) = train_alone(folder, outside, folder / "bomb.png")
    assert mlflow.get_run(calm).data.metrics["data/unreadable_images"] == 0
    assert_named(run_id, {"bomb.png": "600000000 pixels"})
    assert most < least + BOMB_MEGABYTES


@pytest.fixture
def vanish(monkeypatch):
    """Delete files of a training once it has done its second step."""

    def plan(files):
        advance = ProgressDisplay.advance

        def advance_and_delete(self, step, metrics):
            advance(self, step, metrics)
            if step == 2:
                for file in files:
                    file.unlink()

        monkeypatch.setattr(ProgressDisplay, "advance", advance_and_delete)

    return plan


@pytest.fixture
def classes(tmp_path):
    """Two classes of 250 files, of which training sees some 400."""
    for name in ("cat", "dog"):
        write_good(tmp_path / "images" / name, 250)
    return open_dataset(str(tmp_path / "images"))


def seen_files(dataset, count):
    """Files that training sees, by name."""
    seen = dataset.split(0).seen
    return {dataset.names[i]: dataset.pictures[i] for i in seen[:: len(seen) // count][:count]}


# Three epochs where files are read again, since the workers are up to an epoch ahead of what the training has done.
@pytest.mark.parametrize(("limit_bytes", "steps"), [(0, 30), (1 << 30, 4)])
def test_files_that_vanish_are_missed_only_where_they_are_read_again(
    store, classes, vanish, monkeypatch, limit_bytes, steps
):
    monkeypatch.setattr(images, "MEMORY_LIMIT_BYTES", limit_bytes)
    # The neighbours of every image are asked for, so that those that vanished are among them.
    monkeypatch.setattr(learn, "NEIGHBOUR_SHARE", 100)
    doomed = seen_files(classes, 3)
    vanish(doomed.values())
    result = hpt_mlflow.pretrain(data=classes.uri, steps=steps, workers=2, cache_gib=0, **TINY)
    assert not any(file.exists() for file in doomed.values())
    assert result.metrics["data/unreadable_images"] == (0 if limit_bytes else 3)
    assert 0 <= result.metrics["knn/val_accuracy"] <= 1
    if not limit_bytes:
        assert_named(result.run_id, dict.fromkeys(doomed, "FileNotFoundError"))


def test_more_vanishing_files_than_one_percent_end_the_training_and_are_named(store, classes, vanish, monkeypatch):
    monkeypatch.setattr(images, "MEMORY_LIMIT_BYTES", 0)
    doomed = seen_files(classes, 40)
    vanish(doomed.values())
    seen = len(classes.split(0).seen)
    with pytest.raises(HptError, match=rf"of {seen} images of images are unreadable \(at most 1% may be\)") as caught:
        hpt_mlflow.pretrain(data=classes.uri, steps=30, workers=2, cache_gib=0, **TINY)
    assert str(caught.value).isprintable()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    assert run.data.metrics["data/unreadable_images"] > 4
    table = mlflow.load_table("unreadable_images.json", run_ids=[run.info.run_id])
    assert set(table["image"]) <= doomed.keys()


def test_more_bad_files_than_one_percent_are_refused_before_there_is_a_run(store, tmp_path):
    folder = tmp_path / "images"
    write_good(folder, 400)
    bad = write_bad(folder)
    with pytest.raises(HptError) as caught:
        hpt_mlflow.pretrain(data=str(folder), steps=2, **TINY)
    message = str(caught.value)
    assert message.startswith(f"data: {len(bad)} of {400 + len(bad)} images of images are unreadable")
    assert message.isprintable()
    assert r"the first is 'caf\udce9.gif': UnidentifiedImageError" in message
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []
