"""What holds for folders of any kind."""

import io
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError

FOLDERS = ["a", "b", "cafe\u0301", "caf\xe9", "train", "Training_Set", "test", "val", "unlabeled", "extra"]
FOLDERS += ["mlruns", "@eaDir"]
FILES = ["1.png", "2.PNG", "3.jpg", ".4.png", "5.jxl", "6.txt", "7"]
SYSTEM, OUTPUT = {"@eaDir"}, {"mlruns"}

paths = st.builds(
    lambda folders, file: "/".join([*folders, file]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(FILES),
)
trees = st.dictionaries(paths, st.integers(0, 5), min_size=1, max_size=25)
quick = settings(max_examples=80, deadline=None, derandomize=True)


def picture(number):
    buffer = io.BytesIO()
    Image.new("L", (3, 3), 40 * number).save(buffer, "PNG")
    return buffer.getvalue()


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
