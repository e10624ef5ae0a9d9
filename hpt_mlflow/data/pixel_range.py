"""Which pixels suit a dataset: 8-bit RGB, or the bands and the range of its numbers, measured once and kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpt_mlflow.data.cache import cache_folder, keep_json, read_json
from hpt_mlflow.data.dataset import Dataset, content_digest, evenly_spaced
from hpt_mlflow.data.decode import conversion
from hpt_mlflow.data.errors import UnreadableImageError, data_error
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.formats.numbers import Numbers
from hpt_mlflow.data.numbers import is_plain, read_numbers
from hpt_mlflow.data.pictures import open_picture
from hpt_mlflow.data.rgb import has_halved_colours
from hpt_mlflow.errors import printable
from hpt_mlflow.pixels import RGB, PixelFormat, pixel_format_of

LOOKED_AT = 64
# Of each band of a picture.
SAMPLED = 4096
# In percent: numbers beyond them are outliers.
OUTERMOST = 0.1
# The range between them is widened by this share of it on either side, unless the extremes come first.
MARGIN = 0.5
# A range of whole numbers that is at least this share of what their bits can hold becomes all that they can hold.
USED = 0.25
# Pictures with more bands are spectra.
MOST_BANDS = 512


def pixels_of(dataset: Dataset) -> PixelFormat:
    """What the pictures of a dataset are decoded to.

    Grey and RGB of 8 bits stay as they are. Where any of `LOOKED_AT` pictures has more bits, numbers are scaled to 16
    bits by the range of the whole dataset; where most have more bands than colours, all bands become channels. The
    official test part is not looked at.

    Raises:
        HptError: the bands that the address names are not there.
    """
    indices = np.arange(len(dataset))
    if dataset.test is not None and len(dataset.test) < len(dataset):
        indices = np.setdiff1d(indices, dataset.test)
    looked_at = evenly_spaced(indices, LOOKED_AT)
    if not dataset.bands and all(_is_plain(dataset, index) for index in looked_at.tolist()):
        return RGB
    digest = content_digest(dataset.contents.of(looked_at))
    named = hashlib.sha256(f"{digest} {dataset.bands} {conversion()}".encode()).hexdigest()[:32]
    file = cache_folder() / "pixels" / f"{named}.json"
    pixels = read_json(file, pixel_format_of)
    if pixels is None:
        pixels = _measure(dataset, looked_at)
        keep_json(file, pixels.as_values())
    return pixels


def pixels_for(dataset: Dataset, learned: PixelFormat) -> PixelFormat:
    """What the pictures of a dataset are decoded to for a model.

    Args:
        learned: the pixels that the model was trained on. A model of deep images or of bands keeps their choice and
            range, as where it is served; one of 8-bit RGB takes what suits the dataset.

    Raises:
        HptError: the model takes another number of channels.
    """
    pixels = pixels_of(dataset)
    takes_all = learned.bands == tuple(range(1, learned.channels + 1))
    if pixels.channels != learned.channels and (not learned.bands or dataset.bands or takes_all):
        raise data_error(
            f"images of {dataset.name} have {pixels.channels} channels, and the model takes {learned.channels}",
            "adapt it to such images first, or choose as many bands with ?bands=3,2,1 after the address",
        )
    return pixels if learned.is_rgb else learned


def lost_depth(dataset: Dataset, indices: np.ndarray) -> str:
    """A warning of colours of 16 bits of which Pillow reads 8, as another reader is not installed; or empty.

    Args:
        indices: int64 (n,), of the pictures in question.
    """
    command, halved = registry.missing("TIFF"), []
    for index in evenly_spaced(indices, LOOKED_AT).tolist() if command else ():
        try:
            picture = dataset.pictures[index]
            if isinstance(picture, Path | bytes):
                with open_picture(picture) as image:
                    halved += [index] if has_halved_colours(image) else []
        except Exception:  # of what cannot be opened, there is more to say elsewhere
            continue
    if not halved:
        return ""
    name = printable(str(dataset.names[halved[0]]))
    return f"of {name} and other images, only 8 of 16 bits per colour are read; for all of them, {command}"


def _is_plain(dataset: Dataset, index: int) -> bool:
    """Also for what cannot be read, which is counted elsewhere."""
    try:
        return is_plain(dataset.pictures[index])
    except (UnreadableImageError, OSError):
        return True


def _measure(dataset: Dataset, looked_at: np.ndarray) -> PixelFormat:
    found = []
    for index in looked_at.tolist():
        try:
            found.append(_sample(read_numbers(dataset.pictures[index])))
        except (UnreadableImageError, OSError):
            continue
    if not found:
        return RGB
    usual = Counter(numbers.values.shape[1] for numbers in found).most_common(1)[0][0]
    bands = dataset.bands or (() if usual in (1, 3) else tuple(range(1, usual + 1)))
    if max(bands, default=0) > usual:
        raise data_error(
            f"bands={','.join(map(str, bands))}: most images of {dataset.name} have {usual} bands",
            "name some of these, counted from 1",
        )
    if usual > MOST_BANDS:
        raise data_error(
            f"most images of {dataset.name} have {usual} bands, and at most {MOST_BANDS} can be read",
            "choose some with ?bands=1,2,3 after the address",
        )
    same = [numbers for numbers in found if numbers.values.shape[1] == usual]
    if all(numbers.values.dtype == np.uint8 for numbers in same):
        return PixelFormat(bands)
    ranges = _ranges([numbers.values for numbers in same if numbers.low is None], bands)
    if not ranges:
        # Every picture says what is black and white.
        ranges = [(0.0, 1.0)] * max(1, len(bands))
    low, high = zip(*(ranges if bands else ranges * 3), strict=True)
    return PixelFormat(bands, low, high)


def _sample(numbers: Numbers) -> Numbers:
    """Some of the numbers of each band, and the extremes of all: (n, bands)."""
    values = numbers.values.reshape(-1, numbers.values.shape[2])
    sample = values[:: -(-len(values) // SAMPLED)]
    if numbers.low is None:
        bands = [band[np.isfinite(band)] for band in values.T]
        extremes = [(band.min(), band.max()) if len(band) else sample[:2, i] for i, band in enumerate(bands)]
        sample = np.concatenate([sample, np.array(extremes, values.dtype).T])
    return numbers._replace(values=sample)


def _ranges(samples: Sequence[np.ndarray], bands: Sequence[int]) -> list[tuple[float, float]]:
    """The range of each of the bands; one range of all where they are colours; none without numbers."""
    if not samples:
        return []
    if not bands:
        return [_range(np.concatenate([sample.reshape(-1) for sample in samples]))]
    return [_range(np.concatenate([sample[:, band - 1] for sample in samples])) for band in bands]


def _range(values: np.ndarray) -> tuple[float, float]:
    """What becomes black and white: see `OUTERMOST`, `MARGIN` and `USED`."""
    whole = values.dtype.kind in "iu"
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    lowest, highest = float(values.min()), float(values.max())
    lower, upper = np.percentile(values, (OUTERMOST, 100 - OUTERMOST)).tolist()
    if whole and lowest >= 0:
        most = 2.0 ** int(highest).bit_length() - 1
        if upper - lower >= USED * most:
            return 0.0, most
    margin = MARGIN * (upper - lower)
    low, high = max(lowest, lower - margin), min(highest, upper + margin)
    return (low, high) if high > low else (low, low + 1)
