"""Fingerprints of images: whether two datasets, however they name their files, hold the same ones."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.decode import Encoded

# What is read of a file at each end; with its size it tells images apart, and a million files take minutes, not hours.
END_BYTES = 4096
THREADS = 16
UNKNOWN = 0


def fingerprints(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """64 bits of each image's content, int64 (N,); `UNKNOWN` where it cannot be read.

    Of a file: its size, its first and its last 4096 bytes. Of an array or a Pillow image: its shape and pixels.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(partial(_fingerprint, dataset), indices.tolist())
        return np.fromiter(found, dtype=np.int64, count=len(indices))


def _fingerprint(dataset: Dataset, index: int) -> int:
    digest = hashlib.blake2b(digest_size=8)
    try:
        picture: Encoded = dataset.pictures[index]
        if isinstance(picture, Path):
            _add_file(digest, picture)
        elif isinstance(picture, bytes):
            digest.update(picture)
        else:
            pixels = np.ascontiguousarray(picture)
            digest.update(f"{pixels.dtype}{pixels.shape}".encode())
            digest.update(pixels.tobytes())
    # As in `decode`, damaged data may raise almost anything.
    except Exception:
        return UNKNOWN
    return int.from_bytes(digest.digest(), "little", signed=True)


def _add_file(digest: hashlib.blake2b, file: Path) -> None:
    # Opening a FIFO would wait for somebody to write.
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    digest.update(str(status.st_size).encode())
    with open(file, "rb", buffering=0) as opened:
        digest.update(opened.read(END_BYTES))
        if status.st_size > END_BYTES:
            opened.seek(max(END_BYTES, status.st_size - END_BYTES))
            digest.update(opened.read(END_BYTES))
