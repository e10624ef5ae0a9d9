"""`builtin:NAME`: small real images that come with the package or one of its dependencies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.errors import data_error
from hpt_mlflow.data.names import Names, NumberedNames

EMOJI = Path(__file__).parent / "emoji"
EMOJI_SETS = ("noto", "twemoji")
# Pixels of a side of an emoji, and emoji in a row of a sheet.
SIDE, COLUMNS = 64, 36


def open_builtin(name: str, root: str | None) -> Dataset:
    """Open `noto` or `twemoji`, the same 1,271 emoji in two styles, of 31 classes; or `digits`, 1,797 of 8 x 8 pixels.

    Raises:
        HptError: there is no such dataset.
    """
    if name in EMOJI_SETS:
        return _open_emoji(name)
    if name == "digits":
        return _open_digits()
    raise data_error(f"there is no builtin:{name}", "there are builtin:noto, builtin:twemoji and builtin:digits")


def _open_emoji(name: str) -> Dataset:
    """Cut a sheet of emoji into its pictures."""
    names = json.loads((EMOJI / "names.json").read_text(encoding="utf-8"))
    with Image.open(EMOJI / f"{name}.webp") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    counts = [len(codes) for codes in names.values()]
    return Dataset(
        name=name,
        uri=f"builtin:{name}",
        pictures=list(tiles[: sum(counts)]),
        names=Names.of(f"{group}/{code}" for group, codes in names.items() for code in codes),
        labels=np.repeat(np.arange(len(names)), counts),
        classes=tuple(names),
    )


def _open_digits() -> Dataset:
    # Importing scikit-learn takes seconds.
    from sklearn.datasets import load_digits

    values, digits = load_digits(return_X_y=True)  # 1,797 x 64, 0 to 16
    images = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Dataset(
        name="digits",
        uri="builtin:digits",
        pictures=list(images),
        names=NumberedNames(len(images), "digits"),
        labels=np.asarray(digits, dtype=np.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )
