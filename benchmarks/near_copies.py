"""Near copies: planted among real images, recall and precision; and how long a million features take.

    python benchmarks/near_copies.py planted FOLDER
    python benchmarks/near_copies.py features

The first plants a copy of 400 images per kind among all images of a folder of class folders, each original copied
once, and searches all of them at once. The nearest match that is reported of a copy is right if it is the copy's own
original, or an image that equals that original in the set as it came: the same within 8 of 255 levels (root mean
square over all pixels and channels at full size), mirrored or not. Everything else counts as wrong, however alike it
looks. The precision of all pairs that have a copy in them, also those that are the nearest match of another image only,
is given as well.

The second searches the ten nearest of each of a million unit vectors of 512 dimensions, in clusters as features are,
kept in 16 bits in a file, with a planted neighbour of cosine 0.9 for each of 10,000, and compares with exact search.
"""

from __future__ import annotations

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.perceptual import thumbnail
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.inspection.near import NearPairs, near_pairs
from hpt_mlflow.inspection.search import Neighbours

PER_KIND = 400
SAME_LEVELS = 8.0
FEATURES, DIMENSIONS, PLANTED, CHECKED = 1_000_000, 512, 10_000, 1_000
BLOCK, LEAST = 50_000, 0.5


def as_jpeg(image: np.ndarray, quality: int = 30) -> np.ndarray:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    return np.asarray(Image.open(encoded).convert("RGB"))


def half(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((max(1, width // 2), max(1, height // 2)), Image.LANCZOS))


def planted(folder: str) -> None:
    dataset = open_dataset(folder)
    images = [decode(dataset.pictures[i]) for i in range(len(dataset))]
    rng = np.random.default_rng(0)

    def crop(image: np.ndarray) -> np.ndarray:
        height, width = (round(0.9 * side) for side in image.shape[:2])
        top, left = (rng.integers(0, side - part + 1) for side, part in zip(image.shape, (height, width), strict=False))
        return image[top : top + height, left : left + width]

    def flip(image: np.ndarray) -> np.ndarray:
        return image[:, ::-1].copy()

    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "JPEG, quality 30": as_jpeg,
        "half size": half,
        "90% crop": crop,
        "flip": flip,
        "JPEG of the flip at half size": lambda image: as_jpeg(half(flip(image))),
    }
    varied = [i for i, image in enumerate(images) if image.std() > 1]
    originals = rng.permutation(varied)[: PER_KIND * len(kinds)].reshape(len(kinds), -1)
    copies = [make(images[i]) for make, some in zip(kinds.values(), originals, strict=True) for i in some]
    started = time.monotonic()
    table = np.stack([thumbnail(image) for image in images + copies])
    hashed = time.monotonic()
    pairs = near_pairs(table, np.arange(len(table)))
    searched = time.monotonic()
    print(
        f"{len(images)} images and {len(copies)} copies: {1e6 * (hashed - started) / len(table):.0f} us per thumbnail, "
        f"search {searched - hashed:.0f} s"
    )
    score(pairs, images, originals.reshape(-1), list(kinds))
    own = (pairs.one < len(images)) & (pairs.other < len(images))
    print(f"pairs among the images as they came: {own.sum()}, {(pairs.difference[own] == 0).sum()} of the same pixels")


def score(pairs: NearPairs, images: list[np.ndarray], original: np.ndarray, kinds: list[str]) -> None:
    """Print recall and precision of the nearest match of each copy, and the precision of all pairs with a copy."""
    nearest = np.full(len(original), np.inf)
    match, right, wrong = np.full(len(original), -1), 0, 0
    for row, pair in enumerate(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True)):
        if max(pair) < len(images):
            continue
        sources = [original[i - len(images)] if i >= len(images) else i for i in pair]
        is_right = sources[0] == sources[1] or equal(images[sources[0]], images[sources[1]])
        right, wrong = right + is_right, wrong + (not is_right)
        for copy in (i - len(images) for i in pair if i >= len(images)):
            if pairs.difference[row] < nearest[copy] or (pairs.difference[row] == nearest[copy] and is_right):
                nearest[copy], match[copy] = pairs.difference[row], is_right
    match = match.reshape(len(kinds), -1)
    for kind, of_kind in zip(kinds, match, strict=True):
        print(
            f"{kind:30} recall {(of_kind == 1).mean():.3f}, {(of_kind == 0).sum()} of {len(of_kind)} with a wrong match"
        )
    asked = match[:4]
    precision = (asked == 1).sum() / (asked >= 0).sum()
    print(f"the first four: recall {(asked == 1).mean():.3f}, precision {precision:.3f}")
    print(f"all pairs with a copy: {right} right, {wrong} wrong, precision {right / (right + wrong):.3f}")


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    versions = (other.astype(np.float32), other[:, ::-1].astype(np.float32))
    return min(float(np.sqrt(((one - version) ** 2).mean())) for version in versions) < SAME_LEVELS


def features() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2_000, DIMENSIONS), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        vectors = np.memmap(Path(folder) / "features", np.float16, "w+", shape=(FEATURES, DIMENSIONS))
        for start in range(0, FEATURES, BLOCK):
            noise = rng.standard_normal((BLOCK, DIMENSIONS), np.float32)
            vectors[start : start + BLOCK] = unit(centres[rng.integers(0, len(centres), BLOCK)] + noise)
        chosen = rng.permutation(FEATURES)
        sources, copies = chosen[:PLANTED], chosen[PLANTED : 2 * PLANTED]
        aside = unit(rng.standard_normal((PLANTED, DIMENSIONS), np.float32))
        vectors[copies] = unit(0.9 * vectors[sources].astype(np.float32) + np.sqrt(1 - 0.9**2) * aside)
        vectors.flush()
        started = time.monotonic(), time.process_time()
        neighbours = Neighbours(vectors, exact=False)
        built = time.monotonic(), time.process_time()
        one, other, _ = neighbours.within(vectors, 10, LEAST)
        done = time.monotonic(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        for what, before, after in (("index", started, built), ("search", built, done)):
            print(f"{what}: {after[0] - before[0]:.0f} s, {after[1] - before[1]:.0f} s of processors", flush=True)
        print(f"{peak:.2f} GiB at most, {len(one)} pairs", flush=True)
        found = set(zip(one.tolist(), other.tolist(), strict=True))
        print(f"planted: recall {np.mean([pair in found for pair in zip(copies, sources, strict=True)]):.4f}")
        subset = np.sort(chosen[-CHECKED:])
        exact = Neighbours(vectors, exact=True).within(vectors[subset], 10, LEAST)
        wanted = list(zip(subset[exact[0]].tolist(), exact[1].tolist(), strict=True))
        print(
            f"of {len(wanted)} pairs that exact search finds for {CHECKED} of them: recall "
            f"{np.mean([pair in found for pair in wanted]):.4f}"
        )


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    {"planted": planted, "features": features}[sys.argv[1]](*sys.argv[2:])
