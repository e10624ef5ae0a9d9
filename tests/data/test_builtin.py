"""Images that come with the package."""

import numpy as np
import pytest

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


@pytest.mark.parametrize("name", ["noto", "twemoji"])
def test_emoji_have_31_classes_and_no_copies(name):
    dataset = open_dataset(f"builtin:{name}")
    assert (dataset.name, dataset.uri) == (name, f"builtin:{name}")
    assert len(dataset) == len(dataset.names) == len(dataset.labels) == 1271
    assert np.unique(dataset.labels).tolist() == list(range(31))
    assert {decode(picture).shape for picture in dataset.pictures} == {(64, 64, 3)}
    assert len(dataset.identical) == 0
    # The last emoji is a picture too, not the white behind the end of the sheet.
    assert dataset.pictures[-1].std() > 20


def test_both_styles_show_the_same_emoji():
    noto, twemoji = (open_dataset(f"builtin:{name}") for name in ("noto", "twemoji"))
    assert noto.names == twemoji.names
    assert noto.classes == twemoji.classes
    assert noto.labels.tolist() == twemoji.labels.tolist()
    # A red circle is red in the middle, in both.
    (circle,) = (i for i, name in enumerate(noto.names) if name == "geometric/1f534")
    for dataset in (noto, twemoji):
        red, green, blue = dataset.pictures[circle][40, 32]
        assert red > 180
        assert max(green, blue) < 100


def test_digits_have_their_labels():
    dataset = open_dataset("builtin:digits")
    assert len(dataset) == len(dataset.names) == len(dataset.labels) == 1797
    assert dataset.classes == tuple("0123456789")
    assert decode(dataset.pictures[0]).shape == (8, 8, 3)
    # Ones are drawn with less ink than zeros.
    ink = [np.mean([dataset.pictures[i].mean() for i in np.flatnonzero(dataset.labels == digit)]) for digit in (0, 1)]
    assert ink[0] > ink[1]


def test_an_unknown_one_is_refused_with_those_known():
    with pytest.raises(HptError, match="builtin:cifar.*builtin:noto, builtin:twemoji and builtin:digits"):
        open_dataset("builtin:cifar")
