"""The settings of embedding a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.options import Settings, option
from hpt_mlflow.settings.common import DEFAULT_MODEL_NAME, DEVICE_HELP, OPERATIONAL, ROOT_HELP, WORKERS_HELP


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(Settings):
    """Write the features of all images of a dataset, and what a classifier says of them, into a Parquet file."""

    data: str = option(
        "builtin:twemoji",
        "Images: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or torchvision:. Labels are "
        "not needed.",
        main=True,
        changes_result=False,
    )
    root: str | None = option(None, ROOT_HELP, **OPERATIONAL)
    model: str = option(
        f"models:/{DEFAULT_MODEL_NAME}/latest",
        "Backbone or classifier: a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model "
        f"{DEFAULT_MODEL_NAME}.",
        main=True,
    )
    to: str = option(
        "embeddings.parquet",
        "File that is written, or replaced. After an interruption, the same command resumes from TO.parts.",
        main=True,
        changes_result=False,
    )
    dtype: str = option("float32", "Type of the features in the file.", choices=("float32", "float16"))
    patches: bool = option(False, "Also store the map of features before they are averaged over the image.")
    precision: str = option(
        "auto",
        "Arithmetic of features. auto: bfloat16 on a GPU that has it in hardware, else float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    batch_size: int = option(256, "Images in a forward pass.", minimum=1, changes_result=False)
    workers: int | None = option(None, WORKERS_HELP, minimum=1, changes_result=False)
    device: str = option("auto", DEVICE_HELP, **OPERATIONAL)
