"""What a list holds, read in the obvious way."""

import pytest

from hpt_mlflow.data.labels import WHOLE_NUMBER, number_classes
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


def read_line_by_line(content):
    """Names and labels of a list, by Python's own reading of lines and stripping of strings."""
    text = content.decode("utf-8-sig", "surrogateescape")
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
    entries = read_line_by_line(content)
    labels = [label for _, label in entries if label is not None]
    if not entries or (labels and len(labels) < len(entries)):
        first = next((name for name, label in entries if label is None), "names no images")
        with pytest.raises(HptError) as caught:
            open_dataset(f"list:{file}")
        assert (repr(first) if entries else first) in str(caught.value)
        return
    dataset = open_dataset(f"list:{file}")
    assert dataset.names == [name for name, _ in entries]
    if labels:
        numbers, classes = number_classes(labels)
        assert dataset.labels.tolist() == numbers.tolist()
        assert dataset.classes == classes
    else:
        assert dataset.labels is None
