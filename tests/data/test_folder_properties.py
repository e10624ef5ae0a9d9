"""Folders of any kind, read as the rules say when they are written down a second time, in the plainest way."""

import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.errors import HptError

FOLDERS = ["a", "b", "cafe\u0301", "caf\xe9", "train", "Training_Set", "test", "val", "unlabeled", "extra"]
FOLDERS += ["mlruns", "@eaDir"]
FILES = ["1.png", "2.PNG", "3.jpg", ".4.png", "5.heic", "6.txt", "7"]
SYSTEM, OUTPUT = {"@eaDir"}, {"mlruns"}
PARTS = {"train": "train", "Training_Set": "train", "test": "test", "val": "validation", "unlabeled": "unlabelled"}

paths = st.builds(
    lambda folders, file: "/".join([*folders, file]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(FILES),
)
trees = st.dictionaries(paths, st.integers(0, 5), min_size=1, max_size=25)
quick = settings(max_examples=80, deadline=None, derandomize=True)


def picture(number):
    folder = Path(tempfile.gettempdir()) / f"hpt-picture-{os.getpid()}-{number}.png"
    if not folder.exists():
        Image.new("L", (3, 3), 40 * number).save(folder)
    content = folder.read_bytes()
    folder.unlink()
    return content


PICTURES = [picture(number) for number in range(6)]


def opened(tree, every_image=False):
    """The dataset of a folder with these files, or None where it is refused; the folder is gone afterwards."""
    folder = Path(tempfile.mkdtemp())
    try:
        for path, number in tree.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(PICTURES[number])
        dataset = open_dataset(str(folder), every_image=every_image)
        _ = dataset.digest  # what is in the files is asked for while they are there
        dataset.split(0)
        return dataset
    except HptError:
        return None
    finally:
        shutil.rmtree(folder)


def expected(tree):
    """Labels by name, None for no label; and the test part: by the rules of docs/data.md, word for word."""
    images = [
        path.split("/")
        for path in tree
        if Path(path).suffix.lower() in {".png", ".jpg"}
        and not Path(path).name.startswith(".")
        and not (SYSTEM | OUTPUT) & set(path.split("/")[:-1])
    ]
    heads = {path[0] for path in images if len(path) > 1}
    parts = {PARTS.get(head) for head in heads}
    loose = [path for path in images if len(path) == 1]
    held = next((part for part in ("test", "validation") if part in parts), None)
    in_parts = "train" in parts and (None not in parts or held is not None)
    if held is None and 10 * len(loose) >= len(images):
        in_parts = False
    if in_parts:
        found = [(PARTS[path[0]], path[1:], path) for path in images if len(path) > 1 and path[0] in PARTS]
    else:
        found, held = [(None, path, path) for path in images], None
    deciding = [inner for part, inner, _ in found if part in (None, "train")]
    flat = [inner for inner in deciding if len(inner) == 1]
    classes = {inner[0] for inner in deciding if len(inner) > 1}
    labelled = bool(classes) and (not flat or (len(classes) > 1 and 10 * len(flat) < len(deciding)))
    if not labelled:
        test = {"/".join(path) for part, _, path in found if held and part == held}
        return {"/".join(path): None for _, _, path in found}, test
    for name in ("test", "validation"):
        of_part = [inner for part, inner, _ in found if part == name]
        if 10 * sum(len(inner) == 1 for inner in of_part) >= max(10, len(of_part)):
            found = [entry for entry in found if entry[0] != name]
    found = [entry for entry in found if entry[0] == "unlabelled" or len(entry[1]) > 1]
    held = next((part for part in ("test", "validation") if part in {part for part, _, _ in found}), None)
    if not in_parts:
        held = None
    labels = {
        "/".join(path): None if part == "unlabelled" else unicodedata.normalize("NFC", inner[0])
        for part, inner, path in found
    }
    return labels, {"/".join(path) for part, _, path in found if part == held and held}


@quick
@given(trees)
def test_a_folder_is_read_as_the_rules_say(tree):
    dataset = opened(tree)
    labels, test = expected(tree)
    if dataset is None:
        assert not labels
        return
    assert set(dataset.names) == set(labels)
    assert len(dataset) == len(labels)
    shown = (
        [None] * len(dataset)
        if dataset.labels is None
        else [None if label == NO_LABEL else dataset.classes[label] for label in dataset.labels]
    )
    assert dict(zip(dataset.names, shown, strict=True)) == labels
    assert {dataset.names[i] for i in ([] if dataset.test is None else dataset.test)} == test


@quick
@given(trees)
def test_no_image_is_lost_silently(tree):
    dataset = opened(tree)
    if dataset is None:
        return
    visible = [
        path
        for path in tree
        if not any(part.startswith(".") for part in path.split("/"))
        and not (SYSTEM | OUTPUT) & set(path.split("/")[:-1])
    ]
    counted = Counter({entry.what: entry.count for entry in dataset.left_out})
    folders = sum(count for what, count in counted.items() if what.startswith("folders"))
    assert len(dataset) + counted.total() - folders == len(visible)
    systems = {path.partition(name)[0] + name for path in tree for name in SYSTEM | OUTPUT if name in path.split("/")}
    assert (folders > 0) == bool(systems)


@quick
@given(trees, st.integers(0, 3))
def test_identical_images_are_in_one_part_of_every_split(tree, seed):
    dataset = opened(tree)
    if dataset is None:
        return
    split, contents = dataset.split(seed), [tree[name] for name in dataset.names]
    of_part = {}
    for name in ("train", "validation", "test", "unlabelled"):
        part = getattr(split, name)
        for i in part:
            of_part.setdefault(contents[i], set()).add(name)
    for parts in of_part.values():
        # What is seen without a label may be labelled elsewhere, but is never tested on.
        assert len(parts - {"unlabelled"}) <= 1
        assert not {"test", "unlabelled"} <= parts
    seen = {contents[i] for i in split.seen}
    assert not seen & {contents[i] for i in split.test}
    everywhere = np.concatenate([split.seen, split.test])
    assert len(np.unique(everywhere)) == len(everywhere)


@quick
@given(trees)
def test_whoever_asks_for_every_image_gets_every_image(tree):
    dataset = opened(tree, every_image=True)
    images = {
        path
        for path in tree
        if Path(path).suffix.lower() in {".png", ".jpg"}
        and not any(part.startswith(".") or part in SYSTEM | OUTPUT for part in path.split("/"))
    }
    assert (set() if dataset is None else set(dataset.names)) == images
