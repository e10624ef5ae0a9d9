"""Texts and checks that several stages share."""

from __future__ import annotations

from typing import Any

from hpt_mlflow.errors import HptError

DEFAULT_MODEL_NAME = "hpt"
PRESETS = ("quick", "gentle", "paper")
DEVICE_HELP = "auto (a GPU if there is one), cpu, cuda, cuda:N or mps."
ROOT_HELP = "Folder that relative paths in --data start from, and that holds the files of torchvision: datasets."
CACHE_HELP = (
    "Size of the cache of decoded images on disk (HPT_CACHE), in GiB; the least recently used go first. 0: none."
)
RESUME_HELP = (
    "auto: resume the newest unfinished run with the same settings, data and parent; never: start anew; or the id of "
    "the run to resume."
)

WORKERS_HELP = (
    "Threads that decode images, or, for thousands of images and a GPU, processes. Default: chosen for the machine."
)

# Marks of options that say where and how to work: they change no result, and stages that run stages pass them on.
OPERATIONAL: dict[str, Any] = {"changes_result": False, "passed_on": True}


def parse_count(setting: str, text: str) -> int | float:
    """Read a count: a whole number, or a percentage as a fraction in (0, 1].

    Raises:
        HptError: it is neither, or not above 0, or above 100%.
    """
    try:
        count = float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError:
        raise HptError(
            f"{text!r} is neither a number nor a percentage", "write for example 1000 or 10%", setting=setting
        ) from None
    if not count > 0 or (isinstance(count, float) and count > 1):
        raise HptError(f"{text} must be a positive number, or a percentage up to 100%", setting=setting)
    return count
