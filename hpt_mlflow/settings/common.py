"""What several stages say alike."""

from __future__ import annotations

DEFAULT_MODEL_NAME = "hpt"
PRESETS = ("quick", "paper")
DEVICE_HELP = "auto (a GPU where there is one), cpu, cuda, cuda:N or mps."
CACHE_HELP = "Keep decoded images on disk for later runs, those used last, up to so many GiB in HPT_CACHE; 0: none."
RESUME_HELP = (
    "auto: go on with the newest unfinished run of the same settings, data and parent; never: start anew; or the id of "
    "the run to go on with."
)
