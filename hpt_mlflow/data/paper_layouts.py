"""`paper:NAME?root=DIR`: the datasets of the paper, each read from the folder that its archives unpack to."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hpt_mlflow.data.catalogue import BY_KEY, CatalogueEntry, catalogue_entry
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.labels import number_classes
from hpt_mlflow.data.paper_driving import read_bdd100k, read_viper
from hpt_mlflow.data.paper_files import (
    Content,
    build,
    find_base,
    first_there,
    folder_names,
    image_names,
    labelled_lines,
    other_layout,
    parsing,
)
from hpt_mlflow.data.paper_objects import read_coco, read_voc, read_xview
from hpt_mlflow.data.paper_xrays import read_chest_xray_kids, read_chexpert
from hpt_mlflow.errors import printable

# Files of MATLAB 5 contain only arrays; newer ones are HDF5.
MAT_HEADER = b"MATLAB 5.0 MAT-file"
LARGEST_MAT = 1 << 20

log = logging.getLogger("hpt_mlflow")


def open_paper(address: str, root: str | None) -> Dataset:
    """Open a dataset of the paper.

    Args:
        address: `NAME?root=DIR`, or `NAME` with the folder in `root`. `hpt datasets` lists the names.
        root: the folder that it was unpacked to, if the address names none.

    Raises:
        HptError: the paper has no such dataset, or the folder is missing or has another layout.
    """
    name, _, root_in_name = address.partition("?root=")
    entry = catalogue_entry(name)
    root = root_in_name or root
    if not root:
        raise data_error(f"paper:{name} needs its folder", f"write {entry.address}, or name it with --root")
    folder = Path(os.path.expanduser(root)).resolve()
    base, content = READERS[entry.key](entry, folder)
    return build(entry, folder, base, content)


def read_domainnet(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Lists of train and test, of lines `DOMAIN/CLASS/FILE NUMBER`, next to the folder of the domain or in splits/."""
    domain = entry.key.removeprefix("domainnet-")
    lists = [(f"{domain}_{part}.txt", f"splits/{domain}_{part}.txt") for part in ("train", "test")]
    base = find_base(entry, root, ("DomainNet", "domainnet"), [domain, *lists])
    named: dict[int, str] = {}
    train, test = (_of_domain(entry, base, first_there(entry, base, choices), named) for choices in lists)
    in_train = {label for _, label in train}
    # Painting has a class only in test, which cannot be learned.
    unknown = [label for _, label in test if label not in in_train]
    if unknown:
        shown = printable(", ".join(sorted({named[label] for label in unknown})))
        log.warning(
            "data: %s has %d test images of %s, but none to train on; they are left out",
            entry.title,
            len(unknown),
            shown,
        )
    images = train + [(name, label) for name, label in test if label in in_train]
    present = sorted(in_train)
    labels = np.searchsorted(present, np.array([label for _, label in images], dtype=np.int64)).astype(np.int64)
    classes = tuple(named[number] for number in present)
    return base, Content([name for name, _ in images], labels, classes, np.arange(len(train), len(images)))


def read_resisc45(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Folders of classes, whose files are named `CLASS_001.jpg`."""
    base = find_base(entry, root, ("NWPU-RESISC45",), [])
    if (base / "NWPU-RESISC45").is_dir():
        base /= "NWPU-RESISC45"
    names = list(_named_after_folder(entry, base, "", "_"))
    labels, classes = number_classes(name.split("/")[0] for name in names)
    return base, Content(names, labels, classes)


def read_uc_merced(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Folders of classes in Images/, whose files are named `CLASS00.tif`."""
    base = find_base(entry, root, ("UCMerced_LandUse",), ["Images"])
    names = list(_named_after_folder(entry, base, "Images/", ""))
    labels, classes = number_classes(name.split("/")[1] for name in names)
    return base, Content(names, labels, classes)


def read_flowers(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Images jpg/image_00001.jpg ..., their classes in imagelabels.mat and the parts, by number, in setid.mat."""
    base = find_base(entry, root, ("flowers-102", "102flowers"), ["jpg", "imagelabels.mat", "setid.mat"])
    of_image = _mat_arrays(entry, base / "imagelabels.mat", ["labels"])[0]
    train, validation, test = _mat_arrays(entry, base / "setid.mat", ["trnid", "valid", "tstid"])
    ids = np.concatenate([train, validation, test])
    if len(np.unique(ids)) != len(ids) or len(ids) == 0 or ids.min() < 1 or ids.max() > len(of_image):
        raise other_layout(entry, base, f"setid.mat does not divide the {len(of_image)} images of imagelabels.mat")
    order = np.sort(ids)
    labels, classes = number_classes(str(label) for label in of_image[order - 1].tolist())
    names = [f"jpg/image_{number:05}.jpg" for number in order.tolist()]
    return base, Content(names, labels, classes, np.flatnonzero(np.isin(order, test)))


def _of_domain(entry: CatalogueEntry, base: Path, file: str, named: dict[int, str]) -> list[tuple[str, int]]:
    """Path and number of the class of each image that a list of DomainNet names.

    Args:
        named: what each number is called; those of this list are added.
    """
    domain = entry.key.removeprefix("domainnet-")
    images = []
    for name, label in labelled_lines(entry, base / file):
        kind = name.split("/")[1] if name.count("/") == 2 and name.startswith(f"{domain}/") else None
        if kind is None or not label.isdecimal() or named.setdefault(int(label), kind) != kind:
            raise other_layout(entry, base, f"{file} has the line {name} {label}")
        images.append((name, int(label)))
    return images


def _named_after_folder(entry: CatalogueEntry, base: Path, prefix: str, joint: str) -> Iterable[str]:
    """Images `CLASS/CLASS<joint>NUMBER` in folders of classes, below base / prefix."""
    for kind in folder_names(base / prefix):
        for name in image_names(base / prefix / kind):
            stem = os.path.splitext(name)[0]
            if not re.fullmatch(re.escape(kind + joint) + "[0-9]+", stem):
                raise other_layout(entry, base, f"{prefix}{kind}/{name} is not named after its folder")
            yield f"{prefix}{kind}/{name}"


def _mat_arrays(entry: CatalogueEntry, file: Path, keys: list[str]) -> list[np.ndarray]:
    """Arrays of whole numbers, int64 (n,), of a file of MATLAB 5, which contains only data."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    with parsing(entry, file):
        with open(file, "rb") as opened:
            header = opened.read(len(MAT_HEADER))
        if header != MAT_HEADER or file.stat().st_size > LARGEST_MAT:
            raise ValueError("it is not a file of MATLAB 5")
        content = loadmat(file, variable_names=keys)
        return [content[key].reshape(-1).astype(np.int64, casting="safe") for key in keys]


READERS: dict[str, Callable[[CatalogueEntry, Path], tuple[Path, Content]]] = {
    **{key: read_domainnet for key in BY_KEY if key.startswith("domainnet-")},
    "resisc45": read_resisc45,
    "uc-merced": read_uc_merced,
    "xview": read_xview,
    "viper": read_viper,
    "bdd100k": read_bdd100k,
    "coco-2014": read_coco,
    "pascal-voc": read_voc,
    "flowers-102": read_flowers,
    "chexpert": read_chexpert,
    "chest-xray-kids": read_chest_xray_kids,
}
