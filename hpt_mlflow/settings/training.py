"""The settings that both training stages have."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any

from hpt_mlflow.augment.subset import AUGMENTATIONS, parse_strengths, parse_subset
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import DEFAULT_METHOD, METHODS, MethodOption, all_options, options_of
from hpt_mlflow.models.architecture import FEATURES
from hpt_mlflow.options import Settings, option
from hpt_mlflow.settings.common import (
    CACHE_HELP,
    DEFAULT_MODEL_NAME,
    DEVICE_HELP,
    OPERATIONAL,
    PRESETS,
    RESUME_HELP,
    ROOT_HELP,
    parse_count,
)

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
AUTO = ("auto", "on", "off")
OPTIMIZERS = ("sgd", "adamw")

if TYPE_CHECKING:
    MethodOptions = Settings
else:

    def _setting(own: MethodOption) -> Any:
        """A setting for an option of a method: None until the preset gives its value."""
        return option(None, own.help, minimum=own.minimum, maximum=own.maximum, above=own.above, passed_on=True)

    MethodOptions = make_dataclass(
        "MethodOptions",
        [(name, own.type | None, _setting(own)) for name, own in all_options().items()],
        bases=(Settings,),
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(MethodOptions):
    """What the two training stages share."""

    root: str | None = option(None, ROOT_HELP, **OPERATIONAL)
    images: str | None = option(
        None,
        "Train on a subset: a count or a percentage, drawn from split_seed. Smaller subsets are nested in larger ones. "
        "Default: all images.",
    )
    arch: str | None = option(None, "Backbone: a classification network of torchvision, by name, or timm:NAME.")
    image_size: int | None = option(None, "Side of the square views, in pixels.", minimum=8, maximum=2048)
    small_stem: bool = option(
        False, "For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32 pixels."
    )
    features: str | None = option(
        None,
        "Features of a vision transformer: its class token, the mean of its patches, or both. Default: the class token "
        "of weights that are recognised as a vision transformer, else what the network's library takes.",
        choices=FEATURES,
    )
    method: str = option(
        DEFAULT_METHOD,
        "Self-supervised method; its own options take their defaults from preset.",
        choices=METHODS,
        passed_on=True,
    )
    preset: str = option(
        "gentle",
        "Defaults for options you do not set. gentle: AdamW with small steps for what it starts from and ten times "
        "larger ones for the head, milder augmentations, statistics kept; quick: SGD; both take minutes on two cores, "
        "and are the same from random weights; paper: the paper's.",
        choices=PRESETS,
        passed_on=True,
    )
    steps: int | None = option(None, "Length of the training, in optimiser steps.", minimum=1, changes_trial=False)
    batch_size: int | None = option(None, "Images per step.", minimum=2, passed_on=True)
    optimizer: str | None = option(
        None,
        "Optimiser, with the learning rate and decay that suit it. Default: the preset's, but AdamW for a network "
        "without BatchNorm, such as a vision transformer.",
        choices=OPTIMIZERS,
        passed_on=True,
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate, after the preset's warm-up; falls to 0 along a cosine. With adamw: 0.0005 from random "
        "weights, 0.0003 from others, 0.0001 from a parent whose chain began with random weights, and up to ten times "
        "as much for updates that touch little.",
        above=0,
        passed_on=True,
    )
    weight_decay: float | None = option(None, "Weight decay.", minimum=0, passed_on=True)
    layer_decay: float | None = option(
        None,
        "Learning rate of each block of the backbone, over that of the next block towards the features; 1: the same "
        "for all. For vision transformers, 0.65 to 0.9 are usual.",
        above=0,
        maximum=1,
        passed_on=True,
    )
    drop_path: float | None = option(
        None,
        "Stochastic depth: probability of leaving out the last block while training; falls linearly to 0 at the first "
        "block. Default: what the network's library does.",
        minimum=0,
        maximum=0.9,
        passed_on=True,
    )
    clip_gradients: float | None = option(
        None, "Largest norm of the gradients of a step. Default: any.", above=0, passed_on=True
    )
    augment: str = option(
        ",".join(AUGMENTATIONS),
        f"Augmentations that make a view: a comma-separated subset of {', '.join(AUGMENTATIONS)}; or none.",
    )
    strengths: str | None = option(
        None,
        "Strengths of augmentations, such as crop_scale=0.3:1,jitter=0.2,blur_sigma=0.1:1,gray_p=0.1; the others are "
        "the preset's. Default: all the preset's.",
        passed_on=True,
    )
    precision: str = option(
        "auto",
        "Arithmetic of the networks. auto: bfloat16 if the hardware has it, else float32.",
        choices=PRECISIONS,
        changes_trial=False,
        passed_on=True,
    )
    compile: str = option(
        "auto",
        "Speed the networks up with torch.compile. auto: if the training is long enough for it to pay, "
        "and no CUDA graph is used.",
        choices=AUTO,
        changes_trial=False,
        passed_on=True,
    )
    cuda_graph: str = option(
        "auto",
        "Do a step on a GPU as one CUDA graph, which is faster for small networks. auto: if one process trains, in "
        "float32 or bfloat16 and without compile=on; a graph is tried against plain steps first.",
        choices=AUTO,
        **OPERATIONAL,
    )
    workers: int | None = option(
        None,
        "Processes that decode and crop images; 0: the training process itself. Default: chosen for the machine; a GPU "
        "crops decoded images itself, in its memory, if they take at most a quarter of it.",
        minimum=0,
        **OPERATIONAL,
    )
    cache_gib: float = option(4.0, CACHE_HELP, minimum=0, **OPERATIONAL)
    device: str = option("auto", DEVICE_HELP, **OPERATIONAL)
    nproc: int = option(
        1,
        "Processes that train together on this machine, each on a GPU or a share of the cores.",
        minimum=1,
        **OPERATIONAL,
    )
    restarts: int = option(
        0,
        "With nproc: how often to restart all processes from the newest training state after one has died.",
        minimum=0,
        **OPERATIONAL,
    )
    seed: int = option(0, "Seed of the weights, the order of the images and the views.", minimum=0, passed_on=True)
    split_seed: int = option(
        0,
        "Seed of the split into train, validation and test; keep it the same along a chain.",
        minimum=0,
        passed_on=True,
    )
    milestones: str = option(
        "25%,50%,100%",
        "When to keep the backbone as a model: comma-separated steps or percentages; the last step is always kept.",
        changes_trial=False,
    )
    checkpoint_every: int = option(
        1000,
        "Steps between two training states kept as artifacts; 0: only when the training is interrupted.",
        minimum=0,
        **OPERATIONAL,
    )
    resume: str = option("auto", RESUME_HELP, changes_result=False)
    model_name: str = option(
        DEFAULT_MODEL_NAME,
        "Name of the registered model that gets the result as a new version.",
        changes_trial=False,
        passed_on=True,
    )
    alias: str | None = option(None, "Alias for the new version, such as base, source or target.", changes_trial=False)
    strict: bool = option(
        False, "Stop at the first unreadable image, instead of skipping up to 1% of them.", **OPERATIONAL
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_options_of_method()
        parse_subset(self.augment)
        parse_strengths(self.strengths or "")
        if self.images is not None:
            parse_count("images", self.images)

    def _check_options_of_method(self) -> None:
        for name in sorted(all_options().keys() - options_of(self.method)):
            if getattr(self, name, None) is not None:
                owners = " or ".join(method for method in METHODS if name in options_of(method))
                raise HptError(
                    f"{self.method} has no such option", f"leave it out, or use method {owners}", setting=name
                )
