"""DICOM files, by pydicom (PS3.3 and PS3.5 of the standard, 2025): images in the numbers that they stand for."""

from __future__ import annotations

import logging
import re
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.codestream import check_codestream
from hpt_mlflow.data.formats.dicom_values import display_values
from hpt_mlflow.data.formats.numbers import MOST_BYTES, Numbers, check_frame, check_size, checked_count, opened
from hpt_mlflow.errors import printable

# What makes a file an encrypted one (PS3.10, section 7.4): CMS's enveloped data, RFC 5652.
ENVELOPED = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOMDIR = "1.2.840.10008.1.3.10"
PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
# Tag, value representation, reserved bytes and length of an element of explicit type.
ELEMENT_BYTES = 12
# Without representation and reserved bytes, against the standard, but files do it.
IMPLICIT_BYTES = 8
FRAME_TAGS = ["Rows", "Columns", "NumberOfFrames", "SOPClassUID"]
SAMPLES = (1, 3)


def frames(file: Path | bytes) -> int:
    """How many images it holds; 0 for reports, presentations, structures, plans and other files without pixels."""
    with opened(file) as stream:
        header = _header(stream, FRAME_TAGS)
        size = stream.seek(0, 2)
    if "Rows" not in header or "Columns" not in header:
        return 0
    count = checked_count(int(header.get("NumberOfFrames") or 1))
    # Each frame takes 8 bytes at least if it is compressed, and one bit per pixel if it is not.
    if count > 1 and count > 8 * size:
        raise UnreadableImageError(f"its header declares {count} images in {size} bytes")
    return count


def read(file: Path | bytes, frame: int) -> Numbers:
    """One image in its modality's units, such as Hounsfield units.

    - Grey: after rescale slope and intercept or the modality LUT. If the file has a window, values are clipped to the
      first one, and its ends are `low` and `high`; otherwise these are the ends of the stored bits, in the same units.
      A VOI LUT is applied if there is no window. MONOCHROME1 is inverted between `low` and `high`: higher is brighter.
    - Colour: RGB, converted from YBR or from a palette. `low` and `high` are the ends of the stored bits.

    Overlays and annotations are neither drawn nor removed.
    """
    with opened(file) as stream:
        header = _header(stream, None)
        _check_is_image(header)
        check_frame(frame, checked_count(int(header.get("NumberOfFrames") or 1)))
        is_regular = _check_decodable(header, stream, frame)
        stored = _stored(header, stream, frame, is_regular)
    return display_values(stored, header, frame)


def _stored(header: Any, stream: BinaryIO, frame: int, is_regular: bool) -> np.ndarray:
    """The numbers of a frame, decompressed, and of colours RGB.

    Args:
        is_regular: whether the file keeps to the standard, so that pydicom can read one frame alone.
    """
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    stream.seek(0)
    syntax = _syntax(header)
    source: Any = stream if is_regular and syntax not in (None, DEFLATED) else dcmread(stream, force=True)
    if syntax is None:
        source.file_meta.TransferSyntaxUID = _guessed_syntax(source)
    try:
        values = pixel_array(source, index=frame)
    except BaseException as error:
        # pylibjpeg-rle is written in Rust, whose panics are not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # Where several decoders fail, each has its line; the last one says why.
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UnreadableImageError(f"its pixels cannot be decoded: {printable(reason[0].strip())}") from error
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _syntax(header: Any) -> Any:
    """The transfer syntax of a file; None if it does not say."""
    meta = header.get("file_meta")
    return meta.get("TransferSyntaxUID") if meta else None


def _guessed_syntax(header: Any) -> str:
    """Of a file without a transfer syntax, what pydicom found out while it read it."""
    from pydicom import uid

    implicit, little = header.original_encoding
    if implicit:
        return str(uid.ImplicitVRLittleEndian)
    return str(uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian)


def _header(stream: BinaryIO, tags: list[str] | None) -> Any:
    """Everything before the pixels, or these elements of it; `stream` is then where the pixels start."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    _prepare()
    start = stream.read(256)
    if start[:1] == b"\x30" and ENVELOPED in start[:64]:
        raise UnreadableImageError("it is encrypted; decrypt it first")
    _check_deflated(stream)
    stream.seek(0)
    try:
        # Old files have no preamble.
        header = dcmread(stream, stop_before_pixels=True, force=start[128:132] != b"DICM", specific_tags=tags)
    except InvalidDicomError as error:
        raise UnreadableImageError("it is not a DICOM file") from error
    if not len(header) and not len(getattr(header, "file_meta", ())):
        raise UnreadableImageError("it is not a DICOM file")
    return header


def _check_deflated(stream: BinaryIO) -> None:
    """Refuse a deflated file that inflates to more than it may: pydicom inflates all of it."""
    from pydicom.filereader import read_dataset, read_preamble

    stream.seek(0)
    if read_preamble(stream, True) is None:
        return
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    size, rest = 0, stream.read()
    while rest and size <= MOST_BYTES:
        size += len(inflate.decompress(rest, 1 << 24))
        rest = inflate.unconsumed_tail
    if size > MOST_BYTES:
        raise UnreadableImageError("it is deflated from more bytes than an image may have")


def _check_is_image(header: Any) -> None:
    """Refuse in words what is a DICOM file but not an image that is read here."""
    meta, syntax = header.get("file_meta"), _syntax(header)
    name = printable(syntax.name) if syntax else ""
    if re.search("MPEG|HEVC|SMPTE", name):
        raise UnreadableImageError(f"it is a video ({name}); save its frames as images")
    kind = header.get("SOPClassUID") or (meta.get("MediaStorageSOPClassUID") if meta else None)
    if kind == DICOMDIR:
        raise UnreadableImageError("it is a DICOMDIR, which lists other files")
    if "Rows" not in header or "Columns" not in header:
        raise UnreadableImageError(
            f"it is a DICOM file without an image ({printable(kind.name) if kind else 'unknown'})"
        )
    samples = header.get("SamplesPerPixel", 1)
    if samples not in SAMPLES:
        raise UnreadableImageError(f"it has {samples} samples per pixel")


def _check_decodable(header: Any, stream: BinaryIO, frame: int) -> bool:
    """Refuse what would take too much memory, or cannot be decompressed here, before it is tried.

    Args:
        stream: where the pixels start.

    Returns:
        Whether compressed pixels are stored as the standard says.
    """
    height, width = int(header.Rows), int(header.Columns)
    bits = int(header.get("BitsAllocated", 8) or 8)
    check_size(height, width, int(header.get("SamplesPerPixel", 1)), max(1, bits // 8))
    syntax = _syntax(header)
    if syntax is None or not syntax.is_transfer_syntax or not syntax.is_encapsulated:
        return True
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImageError(f"it is compressed as {printable(syntax.name)}, which is not read") from None
    if not decoder.is_available:
        raise UnreadableImageError(
            f'it is compressed as {printable(syntax.name)}; pip install "hpt_mlflow[dicom]" reads it'
        )
    at = stream.tell()
    element = stream.read(ELEMENT_BYTES)
    if element[:4] != PIXEL_DATA_TAG:
        raise UnreadableImageError("it has no pixel data")
    is_regular = element[4:6] in (b"OB", b"OW")
    if not is_regular:
        stream.seek(at + IMPLICIT_BYTES)
    count = int(header.get("NumberOfFrames") or 1)
    check_codestream(get_frame(stream, frame, number_of_frames=count), height, width)
    return is_regular


@cache
def _prepare() -> None:
    """Let pydicom not warn of what is tolerated here, without saying in which file."""
    warnings.filterwarnings("ignore", module=r"pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
