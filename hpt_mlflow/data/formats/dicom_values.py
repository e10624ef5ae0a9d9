"""From the stored numbers of a DICOM image to those that it stands for, and the range to show."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats.numbers import Numbers, scaled
from hpt_mlflow.errors import printable

# A lookup table has at most this many entries (PS3.3, C.11.1.1.1).
MOST_ENTRIES = 1 << 16


def display_values(stored: np.ndarray, header: Any, frame: int) -> Numbers:
    """The values of a frame after modality transform, VOI transform and inversion (PS3.4, N.2), and their range.

    Args:
        stored: (height, width), or RGB or YBR-free (height, width, 3), as decompressed.
    """
    kind = str(header.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        return _coloured(stored, header)
    if stored.ndim == 3:
        return Numbers(stored, *_stored_range(stored, header))
    stored = _without_overlays(stored, header)
    values, low, high = _in_units(stored, header, frame)
    values, low, high = _windowed(values, low, high, header, frame)
    if kind == "MONOCHROME1":
        if low is None or high is None:
            raise UnreadableImageError("it is MONOCHROME1, but has no range that it can be inverted in")
        values = _cast(low + high - values.astype(np.float64), values.dtype)
    return Numbers(values, low, high)


def _attribute(header: Any, frame: int, sequence: str, name: str) -> Any:
    """An element, which enhanced images keep per frame, or once for all of them, in functional groups."""
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or ())[frame : frame + 1]
    groups += list(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    for group in groups:
        for item in group.get(sequence) or ():
            if name in item:
                return item.get(name)
    return header.get(name)


def _stored_range(stored: np.ndarray, header: Any) -> tuple[float | None, float | None]:
    """The ends of the stored bits; none for real numbers."""
    if stored.dtype.kind == "f":
        return None, None
    bits = int(header.get("BitsStored") or 8 * stored.dtype.itemsize)
    if not 1 <= bits <= 8 * stored.dtype.itemsize:
        raise UnreadableImageError(f"it declares {bits} stored bits in numbers of {8 * stored.dtype.itemsize}")
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0.0, 2.0**bits - 1)


def _without_overlays(stored: np.ndarray, header: Any) -> np.ndarray:
    """Without what old files keep in the bits above the stored ones."""
    low, high = _stored_range(stored, header)
    if low is None or high is None or (stored.min() >= low and stored.max() <= high):
        return stored
    unused = 8 * stored.dtype.itemsize - int(header.BitsStored)
    return (stored << unused) >> unused


def _in_units(stored: np.ndarray, header: Any, frame: int) -> tuple[np.ndarray, float | None, float | None]:
    """After rescale or the modality LUT (PS3.3, C.11.1), with the range of the stored bits in the same units."""
    table = header.get("ModalityLUTSequence")
    if table:
        return _looked_up(stored, table[0], header)
    transform = "PixelValueTransformationSequence"
    slope = _attribute(header, frame, transform, "RescaleSlope")
    intercept = _attribute(header, frame, transform, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not slope:
        raise UnreadableImageError("its rescale slope is 0")
    values = scaled(stored, slope, intercept)
    low, high = _stored_range(stored, header)
    if low is None or high is None:
        return values, None, None
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return values, ends[0], ends[1]


def _windowed(
    values: np.ndarray, low: float | None, high: float | None, header: Any, frame: int
) -> tuple[np.ndarray, float | None, float | None]:
    """Values in the first window (PS3.3, C.11.2.1), or after the first VOI LUT."""
    voi = "FrameVOILUTSequence"
    centre, width = (_first(_attribute(header, frame, voi, name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        table = header.get("VOILUTSequence")
        return _looked_up(values, table[0], header) if table else (values, low, high)
    function = str(_attribute(header, frame, voi, "VOILUTFunction") or "LINEAR")
    if width <= 0 or (function == "LINEAR" and width < 1) or not np.isfinite([centre, width]).all():
        raise UnreadableImageError(f"its window has the centre {centre:g} and the width {width:g}")
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)
        return (1 / (1 + np.exp(exponent))).astype(np.float32), 0.0, 1.0
    if function == "LINEAR":
        # The standard's exact words: a width of 1 is a threshold.
        centre, width = centre - 0.5, width - 1
        if not width:
            return (values > centre).astype(np.uint8), 0.0, 1.0
    elif function != "LINEAR_EXACT":
        raise UnreadableImageError(f"its window has the unknown function {printable(function)}")
    low, high = centre - width / 2, centre + width / 2
    return _cast(np.clip(values, low, high), values.dtype), low, high


def _looked_up(values: np.ndarray, table: Any, header: Any) -> tuple[np.ndarray, float, float]:
    """Values replaced by those of a table, uint16, and the ends of its bits (PS3.3, C.11.1.1.1 and C.11.2.1.1)."""
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    # 2^16 does not fit into the 16 bits of its number.
    count = count or MOST_ENTRIES
    # Negative if values are, though files often say that it is not.
    first -= (1 << 16) if first >= 1 << 15 and values.dtype.kind == "i" else 0
    data = table.LUTData
    if isinstance(data, bytes):
        _, is_little = header.original_encoding
        kind = ("<u2" if is_little else ">u2") if len(data) >= 2 * count else "u1"
        entries = np.frombuffer(data, kind, len(data) // np.dtype(kind).itemsize)
    else:
        entries = np.array(data, np.uint16).reshape(-1)
    if not 1 <= bits <= 16 or len(entries) < count:
        raise UnreadableImageError(f"its lookup table of {bits} bits has {len(entries)} entries of {count}")
    places = np.clip(np.round(values).astype(np.int64) - first, 0, count - 1)
    return entries.astype(np.uint16)[places], 0.0, 2.0**bits - 1


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None if there is none."""
    from pydicom.multival import MultiValue

    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)


def _cast(values: np.ndarray, wanted: np.dtype) -> np.ndarray:
    """Of the wanted type if that changes no value, or else float32."""
    limits = np.iinfo(wanted) if wanted.kind in "iu" else None
    fits = limits is not None and limits.min <= values.min() and values.max() <= limits.max
    if fits and (values == np.round(values)).all():
        return values.astype(wanted)
    return values.astype(np.float32)


def _coloured(stored: np.ndarray, header: Any) -> Numbers:
    """RGB by the palette of the file (PS3.3, C.7.6.3.1.5 and C.7.9.2)."""
    from pydicom.pixels import apply_color_lut

    for colour in ("Red", "Green", "Blue"):
        _check_segments(header, colour)
    values = apply_color_lut(_without_overlays(stored, header), header)[..., :3]
    return Numbers(values, 0.0, 2.0 ** (8 * values.dtype.itemsize) - 1)


def _check_segments(header: Any, colour: str) -> None:
    """Refuse a palette in segments that expands to more entries than a palette has."""
    data = header.get(f"Segmented{colour}PaletteColorLookupTableData")
    if data is None:
        return
    descriptor = header.get(f"{colour}PaletteColorLookupTableDescriptor")
    wide = descriptor is not None and int(descriptor[2]) == 16
    numbers = np.frombuffer(data, "<u2" if wide else "u1", len(data) // (2 if wide else 1)).tolist()
    at = entries = 0
    while at + 1 < len(numbers) and entries <= MOST_ENTRIES:
        kind, length = numbers[at], numbers[at + 1]
        if kind not in (0, 1):
            raise UnreadableImageError("its palette has segments that refer to others, which are not read")
        entries += length
        at += 2 + (length if kind == 0 else 1)
    if entries > MOST_ENTRIES:
        raise UnreadableImageError(f"its palette has more than {MOST_ENTRIES} entries")
