"""The settings of an inspection."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass

from hpt_mlflow.errors import HptError
from hpt_mlflow.options import Settings, option
from hpt_mlflow.settings.common import DEVICE_HELP, OPERATIONAL, ROOT_HELP, WORKERS_HELP


@dataclass(frozen=True, kw_only=True)
class InspectSettings(Settings):
    """Look at datasets before training: sizes, depths, unreadable images, near copies, blank images and classes."""

    data: str = option(
        "builtin:twemoji",
        "Datasets, separated by spaces, in the order of a chain: FOLDER, folder:, list:, csv:, shards:, paper:, "
        "builtin: or torchvision:. Quote an address that has spaces.",
        main=True,
        changes_result=False,
        arguments=True,
    )
    root: str | None = option(None, ROOT_HELP, **OPERATIONAL)
    page: str | None = option(
        None,
        "File that the page is also written to, even if MLflow cannot be reached.",
        main=True,
        changes_result=False,
    )
    list_to: str | None = option(
        None,
        "File to write for list:, with the images that training may see, without near copies of each other or of test "
        "images, and without blank and unreadable ones.",
        main=True,
        changes_result=False,
    )
    near: bool = option(True, "Look for near copies: re-encoded, resized, slightly cropped or mirrored images.")
    model: str | None = option(
        None, "Also compare features of this model: a models:/ or runs:/ address, NAME@ALIAS, or an alias of hpt."
    )
    similarity: float = option(0.95, "Least cosine of features that are alike.", above=0, maximum=1)
    split_seed: int = option(0, "Seed of the split into train, validation and test.", minimum=0, passed_on=True)
    workers: int | None = option(None, WORKERS_HELP, minimum=1, changes_result=False)
    batch_size: int = option(256, "Images in a forward pass of the model.", minimum=1, changes_result=False)
    device: str = option("auto", DEVICE_HELP, **OPERATIONAL)

    @property
    def addresses(self) -> list[str]:
        """The datasets, one by one.

        Raises:
            HptError: a quote is not closed.
        """
        if os.path.exists(self.data):
            return [self.data]
        try:
            return shlex.split(self.data)
        except ValueError as error:
            raise HptError(f"{self.data!r} cannot be split ({error})", "close the quote", setting="data") from error
