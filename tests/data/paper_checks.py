"""What the tests of the readers of the paper's layouts ask of a dataset."""

import numpy as np
import refusals

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.sources import open_dataset


def opened(key, root):
    dataset = open_dataset(f"paper:{key}?root={root}")
    for picture in dataset.pictures:
        assert decode(picture).shape == (5, 6, 3)
    return dataset


def classes_of(dataset):
    return {name: dataset.classes[label] for name, label in zip(dataset.names, dataset.labels, strict=True)}


def labels_of(dataset):
    return {
        name: {kind for kind, has in zip(dataset.classes, row, strict=True) if has}
        for name, row in zip(dataset.names, dataset.labels, strict=True)
    }


def held_out(dataset):
    return {dataset.names[i] for i in dataset.test}


def together(dataset):
    """The sets of names that are of one group."""
    names = np.array(dataset.names, dtype=object)
    return {frozenset(names[dataset.groups == group]) for group in np.unique(dataset.groups)}


def assert_refused(key, root, *words):
    refusals.assert_refused(f"paper:{key}?root={root}", *words)
