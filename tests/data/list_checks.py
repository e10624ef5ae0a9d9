"""What a list holds, read in the obvious way."""

import os

import pytest

from hpt_mlflow.data.labels import WHOLE_NUMBER, number_classes
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


def read_line_by_line(content):
    """Names and labels of a list, by Python's own reading of lines and stripping of strings."""
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16") if wide else content.decode("utf-8-sig", "surrogateescape")
    entries = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line.strip():
            continue
        if "\t" in line:
            name, _, label = line.rpartition("\t")
            entries.append((name.strip(), label.strip() or None))
            continue
        name, _, label = line.strip().rpartition(" ")
        if name and WHOLE_NUMBER.fullmatch(label):
            entries.append((name.strip(), label))
        else:
            entries.append((line.strip(), None))
    return entries


def assert_read_alike(file, content):
    file.write_bytes(content)
    try:
        # No file is there, so that backslashes are those of Windows.
        entries = [(name.replace("\\", "/"), label) for name, label in read_line_by_line(content)]
    except UnicodeDecodeError:
        with pytest.raises(HptError, match="not UTF-16"):
            open_dataset(f"list:{file}")
        return
    labels = [label for _, label in entries if label is not None]
    if not entries or (labels and len(labels) < len(entries)):
        first = next((name for name, label in entries if label is None), "names no images")
        with pytest.raises(HptError) as caught:
            open_dataset(f"list:{file}")
        assert (repr(first) if entries else first) in str(caught.value)
        return
    first, of_class = {}, {}
    numbers, classes = number_classes(label or "" for _, label in entries)
    for (name, _), number in zip(entries, numbers, strict=True):
        place = os.path.normpath(name) if "./" in name or "//" in name else name
        first.setdefault(place, name)
        of_class.setdefault(place, []).append(number)
    if any(len(set(values)) > 1 for values in of_class.values()):
        with pytest.raises(HptError, match="make its lines agree"):
            open_dataset(f"list:{file}")
        return
    dataset = open_dataset(f"list:{file}")
    assert dataset.names == list(first.values())
    assert sum(entry.count for entry in dataset.left_out) == len(entries) - len(first)
    if labels:
        numbers = [values[0] for values in of_class.values()]
        assert dataset.labels.tolist() == numbers
        assert dataset.classes == classes
    else:
        assert dataset.labels is None
