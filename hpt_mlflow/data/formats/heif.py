"""HEIC and other HEIF files, by Pillow with the plugin of pillow-heif. AVIF needs no plugin."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from hpt_mlflow.data.formats.numbers import Numbers, check_frame, check_size, opened
from hpt_mlflow.data.rgb import to_rgb

# libheif's decoders are many threads each; one picture at a time is as fast.
_turn = threading.Lock()


def frames(file: Path | bytes) -> int:
    """One, the primary image; others are thumbnails, bursts and depth maps."""
    return 1


def read(file: Path | bytes, frame: int) -> Numbers:
    """RGB uint8 (height, width, 3), upright, transparency over white."""
    check_frame(frame, 1)
    _register()
    with opened(file) as stream, Image.open(stream, formats=["HEIF"]) as image:
        check_size(image.height, image.width, 4)
        with _turn:
            return Numbers(np.asarray(to_rgb(image)), 0, 255)


@cache
def _register() -> None:
    """Let Pillow open HEIF files, when the first one comes."""
    import pillow_heif

    pillow_heif.register_heif_opener()
