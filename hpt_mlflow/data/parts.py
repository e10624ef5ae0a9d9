"""How folders, shards and columns of tables name the parts of a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from hpt_mlflow.data.account import LeftOut, examples_of

TRAIN, VALIDATION, TEST, UNLABELLED = "train", "validation", "test", "unlabelled"
WORDS = {
    TRAIN: r"train(?:ing)?",
    VALIDATION: r"val(?:id(?:ation)?)?|dev(?:elopment)?|eval(?:uation)?",
    TEST: r"test(?:ing)?|hold[ _-]?out",
    UNLABELLED: r"unlabell?ed",
}
# train_set, test-images, val2017
AFTER = r"(?:[ _-]?(?:set|images?|imgs?|pictures?|data|part|split|folder))?(?:[ _-]?\d{4})?"
PATTERNS = {part: re.compile(f"(?:{words}){AFTER}", re.IGNORECASE) for part, words in WORDS.items()}


def part_of(name: str) -> str | None:
    """The part that a name means, `TRAIN`, `VALIDATION`, `TEST` or `UNLABELLED`; None for any other name."""
    return next((part for part, pattern in PATTERNS.items() if pattern.fullmatch(name)), None)


def parts_of(names: Iterable[str]) -> dict[str, str | None]:
    """The part that each name means, even if names differ in nothing else, as `birds_train` and `birds_test`."""
    strict = {name: part_of(name) for name in names}
    if has_parts(strict.values()):
        return strict
    words = {name: re.findall(r"[^\W_]+", name) for name in strict}
    within = {name: [part for word in words[name] if (part := part_of(word))] for name in strict}
    others = {tuple(word for word in words[name] if not part_of(word)) for name in strict}
    one_each = all(len(parts) == 1 for parts in within.values())
    return {name: parts[0] for name, parts in within.items()} if one_each and len(others) == 1 else strict


def parts_of_files(stems: Sequence[str], noun: str, names: Sequence[str]) -> tuple[list[str | None], list[LeftOut]]:
    """The part of each file of many images, or None for all if there are no parts; and the files of no part.

    Args:
        stems: names relative to the folder of all, without suffix; numbers at their end do not count.
        noun: what they are called, in the plural.
        names: as they are shown.
    """
    words = [re.sub(r"[\W\d_]+$", "", stem) for stem in stems]
    known = parts_of(words)
    if not has_parts(known.values()):
        return [None] * len(stems), []
    parts = [None if known[word] == UNLABELLED else known[word] for word in words]
    without = [name for name, part in zip(names, parts, strict=True) if part is None]
    entry = LeftOut(noun, len(without), examples_of(without), "they belong to no part to learn or test on")
    return parts, [entry] if without else []


def has_parts(parts: Iterable[str | None]) -> bool:
    """Whether these are the parts of a dataset, and not classes of which one is called train."""
    present = set(parts)
    return TRAIN in present and (None not in present or bool(present & {VALIDATION, TEST}))


def held_out(parts: Iterable[str | None]) -> str | None:
    """The part to test on: test, or else validation, which others report as test for datasets such as ImageNet."""
    present = set(parts)
    return next((part for part in (TEST, VALIDATION) if part in present), None)


def held_out_images(parts: Sequence[str | None], counts: int | Sequence[int] = 1) -> np.ndarray | None:
    """The images to test on, int64; None if no part is held out.

    Args:
        parts: the part of each of N runs of images.
        counts: images per run.
    """
    part = held_out(parts)
    return None if part is None else np.flatnonzero(np.repeat([each == part for each in parts], counts))
