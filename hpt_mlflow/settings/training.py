"""The settings of the two training stages."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_strengths, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import DEFAULT_METHOD, METHODS, options_of
from hpt_mlflow.options import Settings, option
from hpt_mlflow.settings.common import CACHE_HELP, DEFAULT_MODEL_NAME, DEVICE_HELP, PRESETS, RESUME_HELP, parse_count

UPDATES = ("all", "bn", "bn-stats")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
COMPILE = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """What the two training stages share."""

    root: str | None = option(
        None, "Folder that relative paths in --data start from, and that holds the files of torchvision: datasets."
    )
    images: str | None = option(
        None,
        "Learn from so many of the images only, a number or a percentage, drawn from split_seed; a smaller choice lies "
        "in a larger one. Default: all.",
    )
    arch: str | None = option(None, "Backbone: a classification network of torchvision, by name, or timm:NAME.")
    image_size: int | None = option(None, "Side of the square views, in pixels.", minimum=8, maximum=2048)
    small_stem: bool = option(
        False, "For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32 pixels."
    )
    method: str = option(
        DEFAULT_METHOD,
        "Self-supervised method; its own options take their defaults from preset.",
        choices=tuple(METHODS),
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
        None, "Of moco: share of its weights that the key encoder keeps at each step.", minimum=0, maximum=1
    )
    temperature: float | None = option(None, "Temperature of the loss.", above=0)
    queue_size: int | None = option(
        None, "Of moco: keys kept as negatives; cut to a multiple of the batch that the dataset can fill.", minimum=1
    )
    bn_splits: int | None = option(
        None,
        "Of moco: parts of the key batch that have their own batch statistics (instead of ShuffleBN).",
        minimum=1,
    )
    augment: str = option(
        ",".join(AUGMENTATIONS),
        f"Augmentations that make a view: a comma-separated choice of {', '.join(AUGMENTATIONS)}; or none.",
    )
    strengths: str | None = option(
        None,
        "How strong augmentations are, such as crop_scale=0.3:1,jitter=0.2,blur_sigma=0.1:1,gray_p=0.1; what is not "
        "named stays as in the paper. Default: all as in the paper.",
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
        self._check_options_of_method()
        parse_subset(self.augment)
        parse_strengths(self.strengths or "")
        if self.images is not None:
            parse_count("images", self.images)

    def _check_options_of_method(self) -> None:
        for name in sorted(frozenset().union(*map(options_of, METHODS)) - options_of(self.method)):
            if getattr(self, name) is not None:
                having = " or ".join(method for method in METHODS if name in options_of(method))
                raise HptError(f"{name}: {self.method} has no such option; leave it out, or use method {having}")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingSettings):
    """Self-supervised training from random weights, or from weights that come from elsewhere."""

    data: str = option(
        "builtin:mnist",
        "Images to learn from: FOLDER, folder:, list:, csv:, shards:, paper:, builtin: or torchvision:.",
    )
    weights: str | None = option(
        None,
        "Weights to start from: a file of MoCo, OpenSelfSup, torchvision, timm or Lightly, of which ResNets are "
        "recognised and others need arch; torchvision:NAME, such as torchvision:resnet50; or efficientnet-lite0.",
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
        "builtin:digits", "Images to adapt to: FOLDER, folder:, list:, csv:, shards:, paper:, builtin: or torchvision:."
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
