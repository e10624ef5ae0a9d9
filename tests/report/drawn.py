"""Drawing a figure as it is stored."""

from __future__ import annotations

import io
import warnings

from PIL import Image


def drawn(figure) -> Image.Image:
    """The figure as it is stored, without a warning (of a layout that failed, or a letter that is missing)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png")
    assert file.tell() < 1_000_000
    return Image.open(file)
