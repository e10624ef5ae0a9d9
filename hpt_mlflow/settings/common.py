"""What several stages say alike."""

from __future__ import annotations

from hpt_mlflow.errors import HptError

DEFAULT_MODEL_NAME = "hpt"
PRESETS = ("quick", "paper")
DEVICE_HELP = "auto (a GPU where there is one), cpu, cuda, cuda:N or mps."
CACHE_HELP = "Keep decoded images on disk for later runs, those used last, up to so many GiB in HPT_CACHE; 0: none."
RESUME_HELP = (
    "auto: go on with the newest unfinished run of the same settings, data and parent; never: start anew; or the id of "
    "the run to go on with."
)


def parse_count(setting: str, text: str) -> int | float:
    """How many are meant: a whole number, or a percentage as a fraction in (0, 1].

    Raises:
        HptError: it is neither, or not more than none, or more than all.
    """
    try:
        count = float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError:
        raise HptError(
            f"{setting}: {text!r} is neither a number nor a percentage; write for example 1000 or 10%"
        ) from None
    if not count > 0 or (isinstance(count, float) and count > 1):
        raise HptError(f"{setting}: {text} is not more than 0, or more than 100%")
    return count
