"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.protocols import DEFAULT_PROTOCOL, PROTOCOLS
from hpt_mlflow.options import Settings, option
from hpt_mlflow.settings.common import CACHE_HELP, DEFAULT_MODEL_NAME, DEVICE_HELP, OPERATIONAL, ROOT_HELP, WORKERS_HELP


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """How good a model is on a labelled dataset."""

    data: str = option(
        "builtin:twemoji",
        "Labelled images: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or torchvision:.",
        main=True,
        changes_result=False,
    )
    root: str | None = option(None, ROOT_HELP, **OPERATIONAL)
    model: str = option(
        f"models:/{DEFAULT_MODEL_NAME}/latest",
        "Model to evaluate: a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model "
        f"{DEFAULT_MODEL_NAME}. Of a run, runs:/ID, every milestone is evaluated.",
        main=True,
    )
    protocol: str = option(
        DEFAULT_PROTOCOL,
        "How labels are learned. " + "; ".join(f"{name}: {entry.title}" for name, entry in PROTOCOLS.items()) + ".",
        choices=PROTOCOLS,
    )
    labels: str | None = option(
        None,
        "Labelled images to learn from: a number or a percentage of the train part, at least one per class. "
        "Default: all of them"
        + "".join(f"; for {name} {entry.default_labels}" for name, entry in PROTOCOLS.items() if entry.default_labels)
        + ".",
    )
    steps: int | None = option(
        None, "Steps of paper (the paper's: 5000) or of each of finetune's trainings. Default: the paper's.", minimum=1
    )
    repeats: int = option(
        1, "Repetitions of paper or finetune with other seeds, for a mean and a spread.", minimum=1, maximum=100
    )
    untrained: bool = option(True, "Also evaluate an untrained network of the same architecture in the same way.")
    classifier_name: str | None = option(
        None, "Registered model that gets the classifier; none: keep it with the run only. Default: NAME-classifier."
    )
    leave_out: str | None = option(
        None,
        "Classes to leave out, separated by commas (%2C for a comma in a name), such as one that only test has. "
        "Default: none.",
    )
    allow_seen: bool = option(
        False, "Evaluate even if a stage of the chain has trained on test images, or if this cannot be checked."
    )
    seed: int = option(0, "Seed of the untrained network, of drawn labels and of training.", minimum=0, passed_on=True)
    split_seed: int = option(
        0,
        "Seed of the split into train, validation and test; keep it the same along a chain.",
        minimum=0,
        passed_on=True,
    )
    workers: int | None = option(None, WORKERS_HELP, minimum=0, changes_result=False)
    cache_gib: float = option(4.0, CACHE_HELP, minimum=0, **OPERATIONAL)
    precision: str = option(
        "auto",
        "Arithmetic of frozen features. auto: bfloat16 on a GPU that has it in hardware, else float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = option("auto", DEVICE_HELP, **OPERATIONAL)
    batch_size: int = option(256, "Images in a forward pass of frozen features.", minimum=2)

    @property
    def classes_left_out(self) -> list[str]:
        """The names in `leave_out`."""
        return [unquote(name.strip()) for name in (self.leave_out or "").split(",") if name.strip()]

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps or self.repeats > 1) and not PROTOCOLS[self.protocol].takes_steps:
            able = " or ".join(name for name, entry in PROTOCOLS.items() if entry.takes_steps)
            problem = f"protocol {self.protocol} has no steps, and nothing random"
            raise HptError(problem, f"use it with --protocol {able}", setting="steps" if self.steps else "repeats")
