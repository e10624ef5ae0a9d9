"""Decoded images in a row of bytes: in memory, or in a file that all processes, trials and stages map.

A file holds the pixels of all images, then, from the next multiple of 8 bytes on, a table int64 (4, N), a header in
JSON, and a trailer with their lengths and checksum. Each image has its own size, so that the table is known last.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.files import replacing

# Another one where files are laid out, or images decoded, in another way.
MAGIC = b"hptimg03"
# Magic, bytes of pixels, images, bytes of the header, and sha256 of table and header.
TRAILER = struct.Struct("<8sQQQ32s")
ROW_BYTES = 32
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class DecodedFile:
    """A file of decoded images as another process is told of it."""

    path: Path
    key: str

    def map(self) -> Packed | None:
        """The images of the file; None where it is gone, damaged, or of another key."""
        try:
            # Whoever removes or replaces the file, what is mapped stays as it is.
            mapped = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))
            magic, pixel_bytes, count, header_bytes, checksum = TRAILER.unpack(mapped[-TRAILER.size :].tobytes())
            start = _aligned(pixel_bytes)
            table_bytes = ROW_BYTES * count
            index = mapped[start : -TRAILER.size]
            if (
                magic != MAGIC
                or start + table_bytes + header_bytes + TRAILER.size != len(mapped)
                or hashlib.sha256(index.data).digest() != checksum
                or (header := json.loads(index[table_bytes:].tobytes()))["key"] != self.key
            ):
                return None
            unreadable = {int(i): str(reason) for i, reason in header["unreadable"].items()}
            channels, dtype = int(header["channels"]), np.dtype(header["dtype"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            return None
        table = index[:table_bytes].view("<i8").reshape(4, count)
        return Packed(mapped[:pixel_bytes], table, unreadable, self, channels, dtype)


class Packed(Sequence[np.ndarray]):
    """Decoded images in the order of their indices into a dataset; read-only (height, width, channels).

    Attributes:
        unreadable: why others are missing, by index.
        file: the file that they are mapped from; None where they lie in memory.
    """

    def __init__(
        self,
        pixels: Tensor | np.ndarray,
        table: np.ndarray,
        unreadable: dict[int, str],
        file: DecodedFile | None,
        channels: int,
        dtype: np.dtype[Any],
    ) -> None:
        """
        Args:
            pixels: their bytes, uint8, one image after another. A tensor is shared with worker processes, not copied.
            table: int64 (4, N), of each image the index, the end in `pixels`, height and width.
        """
        self._pixels = pixels
        self._indices, self._ends, self._heights, self._widths = table
        self.unreadable = unreadable
        self.file = file
        self._channels, self._dtype = channels, dtype

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]
        end, height, width = self._ends[position], self._heights[position], self._widths[position]
        start = end - self._dtype.itemsize * self._channels * height * width
        image = self._bytes[start:end].view(self._dtype).reshape(height, width, self._channels)
        image.flags.writeable = False
        return image

    def of(self, index: int) -> np.ndarray:
        """The image at an index into the dataset.

        Raises:
            KeyError: it is not among these.
        """
        position = int(np.searchsorted(self._indices, index))
        if position == len(self) or self._indices[position] != index:
            raise KeyError(index)
        return self[position]

    def places(self) -> np.ndarray:
        """The place among these of the image at each index into the dataset, int64; -1 where there is none."""
        places = np.full(int(self._indices[-1]) + 1 if len(self) else 0, -1)
        places[self._indices] = np.arange(len(self))
        return places

    def numbers(self) -> np.ndarray:
        """The numbers of all images, uint8 or uint16, one image after another."""
        return self._bytes.view(self._dtype)

    @property
    def _bytes(self) -> np.ndarray:
        return self._pixels.numpy() if isinstance(self._pixels, Tensor) else self._pixels

    def layout(self) -> np.ndarray:
        """Of each image, where its `numbers` begin, its width and its height, int64 (3, N)."""
        counts = self._channels * self._heights * self._widths
        return np.stack([self._ends // self._dtype.itemsize - counts, self._widths, self._heights])


class _Table:
    """What is known of images once all have come by."""

    def __init__(self) -> None:
        self._rows = array("q")
        self.unreadable: dict[int, str] = {}
        self.end = 0
        self.channels, self.dtype = 3, np.dtype(np.uint8)

    def add(self, index: int, image: np.ndarray | str) -> np.ndarray | None:
        """Take note of an image, and give it back if it is one and not the reason why there is none."""
        if isinstance(image, str):
            self.unreadable[index] = image
            return None
        self.end += image.nbytes
        self.channels, self.dtype = image.shape[2], image.dtype
        self._rows.extend((index, self.end, *image.shape[:2]))
        return np.ascontiguousarray(image)

    def columns(self) -> np.ndarray:
        return np.ascontiguousarray(np.frombuffer(self._rows, dtype=np.int64).reshape(-1, 4).T)


def pack(images: Iterable[tuple[int, np.ndarray | str]]) -> Packed:
    """Keep images in memory.

    Args:
        images: index, and image or why there is none; indices ascend.
    """
    table = _Table()
    kept = [image for pair in images if (image := table.add(*pair)) is not None]
    pixels, end = torch.empty(table.end, dtype=torch.uint8), table.end
    while kept:  # each is given up once it is copied: twice the memory would be a lot
        image = kept.pop()
        pixels.numpy()[end - image.nbytes : end] = image.reshape(-1).view(np.uint8)
        end -= image.nbytes
    return Packed(pixels, table.columns(), table.unreadable, None, table.channels, table.dtype)


def write_packed(file: Path, key: str, images: Iterable[tuple[int, np.ndarray | str]]) -> None:
    """Write a file of images as they come, in one step: nobody ever sees half of it.

    Args:
        key: names what the images are; who maps the file asks for it.
        images: index, and image or why there is none; indices ascend.

    Raises:
        OSError: it cannot be written.
    """
    table = _Table()
    with replacing(file) as temporary, open(temporary, "wb", BUFFER_BYTES) as opened:
        for index, image in images:
            if (pixels := table.add(index, image)) is not None:
                opened.write(pixels.data)
        opened.write(bytes(_aligned(table.end) - table.end))
        columns = table.columns().astype("<i8").tobytes()
        pixels_are = {"channels": table.channels, "dtype": table.dtype.str}
        header = json.dumps({"key": key, "unreadable": table.unreadable} | pixels_are).encode()
        checksum = hashlib.sha256(columns + header).digest()
        opened.write(columns + header)
        opened.write(TRAILER.pack(MAGIC, table.end, len(columns) // ROW_BYTES, len(header), checksum))
        # Or else a machine that loses its power may keep the name, but not what was written.
        opened.flush()
        os.fsync(opened.fileno())


def _aligned(size: int) -> int:
    """Where the table starts behind so many bytes of pixels."""
    return -(-size // 8) * 8
