"""The settings of each stage: every option with its type, default, range, unit and meaning.

The command line, MLproject, the Python API and the reference in docs/ are made from these classes or checked against
them. A setting of None takes its value from elsewhere: from `preset`, or, as its help says, from the parent or the
machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.options import Settings, option

DEFAULT_MODEL_NAME = "hpt"
PRESETS = ("quick", "paper")
UPDATES = ("all", "bn", "bn-stats")
PROTOCOLS = ("fast", "paper", "finetune")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
COMPILE = ("auto", "on", "off")
# What several stages say alike.
DEVICE_HELP = "auto (a GPU where there is one), cpu, cuda, cuda:N or mps."
CACHE_HELP = "Keep decoded images on disk for later runs, those used last, up to so many GiB in HPT_CACHE; 0: none."
RESUME_HELP = (
    "auto: go on with the newest unfinished run of the same settings, data and parent; never: start anew; or the id of "
    "the run to go on with."
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """What the two training stages share."""

    root: str | None = option(
        None, "Folder that relative paths in --data start from, and that holds the files of torchvision: datasets."
    )
    arch: str | None = option(None, "Backbone: a classification network of torchvision, by name, or timm:NAME.")
    image_size: int | None = option(None, "Side of the square views, in pixels.", minimum=8, maximum=2048)
    small_stem: bool = option(
        False, "For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32 pixels."
    )
    preset: str = option(
        "quick",
        "Values for what is not given. quick: learns something in minutes on two cores; paper: the paper's.",
        choices=PRESETS,
    )
    steps: int | None = option(None, "Length of the training, in optimiser steps.", minimum=1)
    batch_size: int | None = option(None, "Images in a step.", minimum=2)
    learning_rate: float | None = option(
        None, "Peak learning rate of SGD, after the preset's warm-up; falls to 0 along a cosine.", above=0
    )
    weight_decay: float | None = option(None, "Weight decay of SGD.", minimum=0)
    key_momentum: float | None = option(
        None, "Share of its weights that the key encoder keeps at each step.", minimum=0, maximum=1
    )
    temperature: float | None = option(None, "Temperature of the InfoNCE loss.", above=0)
    queue_size: int | None = option(
        None, "Keys kept as negatives; cut to a multiple of the batch that the dataset can fill.", minimum=1
    )
    bn_splits: int | None = option(
        None, "Parts of the key batch with batch statistics of their own (does the work of ShuffleBN).", minimum=1
    )
    augment: str = option(
        ",".join(AUGMENTATIONS),
        f"Augmentations that make a view: a comma-separated choice of {', '.join(AUGMENTATIONS)}; or none.",
    )
    precision: str = option(
        "auto", "Arithmetic of the networks. auto: the fastest in a short trial on this machine.", choices=PRECISIONS
    )
    compile: str = option(
        "auto",
        "Let torch.compile make the networks faster. auto: where the training is long enough to win the time back.",
        choices=COMPILE,
    )
    workers: int | None = option(
        None,
        "Processes that decode images; 0: the training process itself. Default: chosen for the machine.",
        minimum=0,
    )
    cache_gib: float = option(4.0, CACHE_HELP, minimum=0)
    device: str = option("auto", DEVICE_HELP)
    nproc: int = option(
        1,
        "Processes that train together on this machine, each on a GPU or a share of the cores (starts torchrun).",
        minimum=1,
    )
    restarts: int = option(
        0, "With nproc: how often all start again from the newest training state when one has died.", minimum=0
    )
    seed: int = option(0, "Seed of the weights, the order of the images and the views.", minimum=0)
    split_seed: int = option(
        0, "Seed of the split into train, validation and test; keep it the same along a chain.", minimum=0
    )
    milestones: str = option(
        "25%,50%,100%",
        "When to keep the backbone as a model: comma-separated steps or percentages; the last step always is.",
    )
    checkpoint_every: int = option(
        1000,
        "Keep the training state as an artifact every so many steps; 0: only when the training is interrupted.",
        minimum=0,
    )
    resume: str = option("auto", RESUME_HELP)
    model_name: str = option(DEFAULT_MODEL_NAME, "Name of the registered model that gets the result as a new version.")
    alias: str | None = option(None, "Alias that the new version gets, such as base, source or target.")
    strict: bool = option(False, "Stop at the first unreadable image, instead of skipping up to 1% of them.")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_subset(self.augment)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingSettings):
    """Self-supervised training from random weights, or from weights that come from elsewhere."""

    data: str = option(
        "builtin:mnist", "Images to learn from: FOLDER, folder:, list:, csv:, shards:, builtin: or torchvision:."
    )
    weights: str | None = option(
        None,
        "Weights to start from: a file of MoCo, OpenSelfSup, torchvision, timm or Lightly, or efficientnet-lite0. "
        "ResNets are recognised; others need arch.",
    )
    steps: int | None = option(
        None, "Length of the training, in optimiser steps; 0: register the weights as they are.", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps == 0 and self.weights is None:
            raise HptError("steps: 0 registers what weights names as it is; name weights, or train 1 step or more")


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(TrainingSettings):
    """Self-supervised training that goes on from a registered model."""

    data: str = option(
        "builtin:digits", "Images to adapt to: FOLDER, folder:, list:, csv:, shards:, builtin: or torchvision:."
    )
    arch: str | None = option(None, "Backbone. Default: the parent's; another one is refused.")
    image_size: int | None = option(
        None, "Side of the square views, in pixels. Default: the parent's.", minimum=8, maximum=2048
    )
    parent: str = option(
        f"models:/{DEFAULT_MODEL_NAME}/latest",
        "Model to start from: a models:/ or runs:/ address, NAME@ALIAS, or an alias of --model-name.",
    )
    update: str = option(
        "all",
        "What may change. all: everything (HPT); bn: BatchNorm layers alone (HPT-BN); bn-stats: only their running "
        "statistics, without any gradient (the paper's Base).",
        choices=UPDATES,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """How good a model is on a labelled dataset."""

    data: str = option(
        "builtin:digits", "Labelled images: FOLDER, folder:, list:, csv:, shards:, builtin: or torchvision:."
    )
    root: str | None = option(
        None, "Folder that relative paths in --data start from, and that holds the files of torchvision: datasets."
    )
    model: str = option(
        f"models:/{DEFAULT_MODEL_NAME}/latest",
        "Model to evaluate: a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model "
        f"{DEFAULT_MODEL_NAME}. Of a run, runs:/ID, each milestone is evaluated.",
    )
    protocol: str = option(
        "fast",
        "fast: a linear probe on features that are computed once; paper: a linear probe trained on random views, as "
        "the paper does (hours); finetune: all weights learn from --labels (hours).",
        choices=PROTOCOLS,
    )
    labels: str | None = option(
        None,
        "Labelled images to learn from: a number or a percentage of the train part, at least one of each class. "
        "Default: all of them; for finetune 1000.",
    )
    steps: int | None = option(
        None, "Steps of paper (the paper's: 5000) or of each of finetune's trainings. Default: the paper's.", minimum=1
    )
    repeats: int = option(
        1, "Repetitions of paper or finetune with other seeds, for a mean and a spread.", minimum=1, maximum=100
    )
    steps_to: float | None = option(
        None,
        "Of a run: an accuracy (or AUROC); the first milestone that reaches it is logged as test/steps_to.",
        minimum=0,
        maximum=1,
    )
    untrained: bool = option(True, "Evaluate an untrained network of the same architecture in the same way, too.")
    classifier_name: str | None = option(
        None, "Registered model that gets the classifier; none: keep it with the run only. Default: NAME-classifier."
    )
    allow_seen: bool = option(False, "Evaluate on test images even though a stage of the chain has trained on them.")
    seed: int = option(0, "Seed of the untrained network, of drawn labels and of training.", minimum=0)
    split_seed: int = option(
        0, "Seed of the split into train, validation and test; keep it the same along a chain.", minimum=0
    )
    workers: int | None = option(None, "Threads that decode images. Default: one for each processor.", minimum=0)
    cache_gib: float = option(4.0, CACHE_HELP, minimum=0)
    precision: str = option(
        "auto",
        "Arithmetic of frozen features. auto: the fastest in a short trial whose features are those of float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = option("auto", DEVICE_HELP)
    batch_size: int = option(256, "Images in a forward pass of frozen features.", minimum=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol == "fast" and (self.steps or self.repeats > 1):
            name = "steps" if self.steps else "repeats"
            raise HptError(f"{name}: only for --protocol paper or finetune; fast has no steps, and nothing random")


@dataclass(frozen=True, kw_only=True)
class MainSettings(Settings):
    """Pretrain, adapt and evaluate in a row."""

    base: str = option("builtin:mnist", "Images that the base model learns from.")
    source: str | None = option(None, "Images of a stage between base and target, nearer to the target. Default: none.")
    target: str = option("builtin:digits", "Images that the model is for; labels, where there are any, only judge it.")
    root: str | None = option(None, "Folder that relative paths start from, and that holds torchvision: datasets.")
    preset: str = option("quick", "Values of all training options: quick or paper.", choices=PRESETS)
    base_steps: int | None = option(None, "Optimiser steps on base. Default: the preset's.", minimum=1)
    adapt_steps: int | None = option(None, "Optimiser steps on source and on target. Default: the preset's.", minimum=1)
    device: str = option("auto", DEVICE_HELP)
    nproc: int = option(1, "Processes that train together on this machine (see pretrain).", minimum=1)
    seed: int = option(0, "Seed of the training.", minimum=0)
    split_seed: int = option(0, "Seed of the split into train, validation and test.", minimum=0)
    resume: str = option("auto", RESUME_HELP)
    model_name: str = option(DEFAULT_MODEL_NAME, "Name of the registered model that gets the versions.")
