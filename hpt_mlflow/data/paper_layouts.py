"""`paper:NAME?root=DIR`: the datasets of the paper, each read from the folder that its archives unpack to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hpt_mlflow.data.catalogue import BY_KEY, CatalogueEntry, catalogue_entry
from hpt_mlflow.data.csv_source import LABEL_VALUES, PATIENT_FOLDER
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.labels import WHOLE_NUMBER, number_classes
from hpt_mlflow.data.paper_files import (
    Content,
    build,
    check_inside,
    find_base,
    folder_names,
    image_names,
    numbered_groups,
    other_layout,
    read_json,
    read_rows,
    read_text,
)
from hpt_mlflow.data.paper_objects import read_coco, read_voc, read_xview
from hpt_mlflow.errors import HptError

# The five that the authors of CheXpert evaluate on, and the paper with them.
CHEXPERT_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
BDD_WEATHER = ("rainy", "snowy", "clear", "overcast", "partly cloudy", "foggy")
BDD_UNDEFINED = "undefined"
# How files of Chest X-ray kids name a child: in Kaggle's copy, where test is numbered anew, and in Mendeley's.
KAGGLE_CHILD = re.compile(r"person[0-9]+(?=_)|(?:NORMAL2-)?IM-[0-9]+(?=-)")
MENDELEY_CHILD = re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-([0-9]+)-")
# Version 5 of MATLAB's files holds nothing but arrays; newer ones are HDF5.
MAT_HEADER = b"MATLAB 5.0 MAT-file"
LARGEST_MAT = 1 << 20


def open_paper(address: str, root: str | None) -> Dataset:
    """Open a dataset of the paper.

    Args:
        address: `NAME?root=DIR`, or `NAME` with the folder in `root`. `hpt datasets` lists the names.
        root: the folder that it was unpacked to, where the address names none.

    Raises:
        HptError: the paper has no such dataset, or the folder is missing or has another layout.
    """
    name, _, root_in_name = address.partition("?root=")
    entry = catalogue_entry(name)
    root = root_in_name or root
    if not root:
        raise HptError(f"data: paper:{name} needs its folder; write {entry.address}, or name it with --root")
    folder = Path(os.path.expanduser(root)).resolve()
    base, content = READERS[entry.key](entry, folder)
    return build(entry, folder, base, content)


def read_domainnet(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Lists of train and test, of lines `DOMAIN/CLASS/FILE NUMBER`, beside the folder of the domain."""
    domain = entry.key.removeprefix("domainnet-")
    lists = [f"{domain}_train.txt", f"{domain}_test.txt"]
    base = find_base(entry, root, ("DomainNet", "domainnet"), [domain, *lists])
    names: list[str] = []
    numbers: list[int] = []
    named: dict[int, str] = {}
    counts = []
    for file in lists:
        for name, label in _labelled_lines(entry, base / file):
            kind = name.split("/")[1] if name.count("/") == 2 and name.startswith(f"{domain}/") else None
            if kind is None or not label.isdecimal() or named.setdefault(int(label), kind) != kind:
                raise other_layout(entry, base, f"{file} has the line {name} {label}")
            names.append(name)
            numbers.append(int(label))
        counts.append(len(names))
    present = sorted(named)
    labels = np.searchsorted(present, np.array(numbers, dtype=np.int64)).astype(np.int64)
    classes = tuple(named[number] for number in present)
    return base, Content(names, labels, classes, np.arange(counts[0], counts[1]))


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


def read_chexpert(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Tables train.csv and valid.csv, whose paths start with the name of the folder that they lie in."""
    base = find_base(entry, root, ("CheXpert-v1.0-small", "CheXpert-v1.0"), ["train.csv", "valid.csv"])
    names: list[str] = []
    labels: list[list[int]] = []
    counts = []
    for file in (base / "train.csv", base / "valid.csv"):
        for path, *values in read_rows(entry, file, ("Path", *CHEXPERT_LABELS)):
            name = check_inside(entry, file, path.partition("/")[2])
            unknown = next((value for value in values if value not in LABEL_VALUES), None)
            if unknown is not None:
                raise other_layout(entry, base, f"{file.name} has the label {unknown!r} for {path}")
            names.append(name)
            labels.append([LABEL_VALUES[value] for value in values])
        counts.append(len(names))
    patients = [PATIENT_FOLDER.search(name) for name in names]
    stray = next((name for name, patient in zip(names, patients, strict=True) if not patient), None)
    if stray is not None:
        raise other_layout(entry, base, f"{stray} is in no folder of a patient")
    groups = numbered_groups([patient.group() for patient in patients if patient])
    matrix = np.array(labels, dtype=np.uint8).reshape(len(names), len(CHEXPERT_LABELS))
    return base, Content(names, matrix, CHEXPERT_LABELS, np.arange(counts[0], counts[1]), groups)


def read_chest_xray_kids(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Folders NORMAL and PNEUMONIA in train, test and, in Kaggle's copy, val; the name of a file tells the child."""
    kinds = ("NORMAL", "PNEUMONIA")
    base = find_base(entry, root, ("chest_xray",), [f"{part}/{kind}" for part in ("train", "test") for kind in kinds])
    parts = [part for part in ("test", "train", "val") if (base / part).is_dir()]
    names = [
        f"{part}/{kind}/{name}"
        for part in parts
        for kind in kinds
        if (base / part / kind).is_dir()
        for name in image_names(base / part / kind)
    ]
    labels = np.array([kinds.index(name.split("/")[1]) for name in names], dtype=np.int64)
    test = np.flatnonzero([name.startswith("test/") for name in names])
    return base, Content(names, labels, kinds, test, numbered_groups([_child(name) for name in names]))


def read_bdd100k(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Images in images/100k/PART, and for each part a JSON list of frames with the attribute weather."""
    base = find_base(entry, root, ("bdd100k",), ["images/100k/train", "images/100k/val", "labels"])
    names: list[str] = []
    labels: list[int] = []
    counts = []
    for part in ("train", "val"):
        choices = [f"labels/bdd100k_labels_images_{part}.json", f"labels/det_20/det_{part}.json"]
        file = next((base / choice for choice in choices if (base / choice).is_file()), None)
        if file is None:
            raise other_layout(entry, base, f"{' and '.join(choices)} are missing")
        frames = read_json(entry, file, frozenset({"name", "attributes", "weather"}))
        for name, weather in _weather_of_frames(entry, file, frames):
            if weather != BDD_UNDEFINED:
                names.append(f"images/100k/{part}/{name}")
                labels.append(BDD_WEATHER.index(weather))
        counts.append(len(names))
    return base, Content(names, np.array(labels, dtype=np.int64), BDD_WEATHER, np.arange(counts[0], counts[1]))


def read_viper(entry: CatalogueEntry, root: Path) -> tuple[Path, Content]:
    """Frames in PART/img/SEQUENCE; their weather in meta/PART_weather.txt, lines `PATH LABEL`, where there is such."""
    base = find_base(entry, root, ("VIPER", "viper"), ["train/img", "val/img"])
    lists = [base / "meta" / f"{part}_weather.txt" for part in ("train", "val", "test")]
    if all(file.is_file() for file in lists):
        lines = [list(_labelled_lines(entry, file)) for file in lists]
        names = [name for part in lines for name, _ in part]
        labels, classes = number_classes(label for part in lines for _, label in part)
        test = np.arange(len(names) - len(lines[-1]), len(names))
    else:
        parts = [part for part in ("train", "val", "test") if (base / part / "img").is_dir()]
        folders = [f"{part}/img/{inner}" for part in parts for inner in folder_names(base / part / "img")]
        names = [f"{folder}/{name}" for folder in folders for name in image_names(base / folder)]
        labels, classes = None, ()
        test = np.flatnonzero([name.startswith("test/") for name in names])
    sequences = numbered_groups([os.path.dirname(name) for name in names])
    return base, Content(names, labels, classes, test if len(test) else None, sequences)


def _labelled_lines(entry: CatalogueEntry, file: Path) -> Iterable[tuple[str, str]]:
    """Path and label of each line of a list; blank lines are none."""
    for i, line in enumerate(read_text(entry, file).splitlines()):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            if not WHOLE_NUMBER.fullmatch(label):
                raise other_layout(entry, file.parent, f"line {i + 1} of {file.name} is not PATH NUMBER")
            yield check_inside(entry, file, name.strip()), label


def _named_after_folder(entry: CatalogueEntry, base: Path, prefix: str, joint: str) -> Iterable[str]:
    """Images `CLASS/CLASS<joint>NUMBER` in folders of classes, below base / prefix."""
    for kind in folder_names(base / prefix):
        for name in image_names(base / prefix / kind):
            stem = os.path.splitext(name)[0]
            if not re.fullmatch(re.escape(kind + joint) + "[0-9]+", stem):
                raise other_layout(entry, base, f"{prefix}{kind}/{name} is not named after its folder")
            yield f"{prefix}{kind}/{name}"


def _child(name: str) -> str:
    """What is the same for all images of a child, and for those of no other."""
    part, _, file = name.split("/")
    mendeley = MENDELEY_CHILD.match(file)
    if mendeley:
        return mendeley.group(1)
    kaggle = KAGGLE_CHILD.match(file)
    return f"{'test' if part == 'test' else 'train'}/{kaggle.group()}" if kaggle else name


def _weather_of_frames(entry: CatalogueEntry, file: Path, frames: object) -> Iterable[tuple[str, str]]:
    """Name of the image and the weather of each frame of BDD100K."""
    if not isinstance(frames, list):
        raise other_layout(entry, file.parent, f"{file.name} is no list of frames")
    for frame in frames:
        name = frame.get("name") if isinstance(frame, dict) else None
        attributes = frame.get("attributes") if isinstance(frame, dict) else None
        weather = attributes.get("weather") if isinstance(attributes, dict) else None
        if not isinstance(name, str) or weather not in (*BDD_WEATHER, BDD_UNDEFINED):
            raise other_layout(entry, file.parent, f"{file.name} has a frame {name!r} of the weather {weather!r}")
        yield check_inside(entry, file, name), weather


def _mat_arrays(entry: CatalogueEntry, file: Path, keys: list[str]) -> list[np.ndarray]:
    """Arrays of whole numbers, int64 (n,), of a file of MATLAB 5, which holds data alone."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        with open(file, "rb") as opened:
            header = opened.read(len(MAT_HEADER))
        if header != MAT_HEADER or file.stat().st_size > LARGEST_MAT:
            raise ValueError("it is no file of MATLAB 5")
        content = loadmat(file, variable_names=keys)
        arrays = [np.asarray(content[key]).reshape(-1) for key in keys]
        if not all(np.issubdtype(array.dtype, np.integer) for array in arrays):
            raise ValueError("it holds no whole numbers")
    # Damaged data may raise almost anything.
    except Exception as error:
        raise other_layout(
            entry, file.parent, f"{file.name} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return [array.astype(np.int64) for array in arrays]


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
