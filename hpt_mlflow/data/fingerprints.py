"""Fingerprints of images: whether two datasets, however they name their files, hold the same ones."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from hpt_mlflow.data.dataset import Dataset, evenly_spaced
from hpt_mlflow.data.decode import Encoded
from hpt_mlflow.data.shards import Members

# What is read of a file at each end; with its size it tells images apart, and a million files take minutes, not hours.
END_BYTES = 4096
THREADS = 16
# Of more images, a sample of so many is looked at.
MOST = 1_000_000
AT_ONCE = 10_000
UNKNOWN = 0


def fingerprints(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """64 bits of each image's content, int64 (N,); `UNKNOWN` where it cannot be read or was not looked at.

    Of a file, or a member of a shard: its size, its first and its last 4096 bytes. Of an array or a Pillow image: its
    shape and pixels. Of more than `MOST` images, so many evenly spaced ones are looked at, since 14 million would
    take many minutes of a local disk, and many hours of a network's. What is found of such a sample is less by the
    sample's share: `seen_images` keeps it.
    """
    looked_at = evenly_spaced(np.arange(len(indices)), MOST)
    result = np.full(len(indices), UNKNOWN, dtype=np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        # All at once, a million waiting tasks would take a gigabyte.
        for start in range(0, len(looked_at), AT_ONCE):
            some = looked_at[start : start + AT_ONCE]
            result[some] = list(pool.map(partial(_fingerprint, dataset), indices[some].tolist()))
    return result


def _fingerprint(dataset: Dataset, index: int) -> int:
    digest = hashlib.blake2b(digest_size=8)
    try:
        if isinstance(dataset.pictures, Members):
            for part in dataset.pictures.ends(index, END_BYTES):
                digest.update(part)
            return int.from_bytes(digest.digest(), "little", signed=True)
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
