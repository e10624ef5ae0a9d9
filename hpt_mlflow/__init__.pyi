# Written by `make generate` from the settings.
from os import PathLike
from typing import Literal, TypeAlias

from hpt_mlflow.data.dataset import Dataset as Dataset
from hpt_mlflow.data.sources import open_dataset as open_dataset
from hpt_mlflow.errors import HptError as HptError
from hpt_mlflow.interval import Interval as Interval
from hpt_mlflow.methods import register_method as register_method
from hpt_mlflow.models.backbone import register_architecture as register_architecture
from hpt_mlflow.settings import AdaptSettings as AdaptSettings
from hpt_mlflow.settings import EmbedSettings as EmbedSettings
from hpt_mlflow.settings import EvaluateSettings as EvaluateSettings
from hpt_mlflow.settings import MainSettings as MainSettings
from hpt_mlflow.settings import PretrainSettings as PretrainSettings
from hpt_mlflow.settings import StudySettings as StudySettings
from hpt_mlflow.settings import TuneSettings as TuneSettings
from hpt_mlflow.stages import register_stage as register_stage
from hpt_mlflow.stages.models import ModelComparison as ModelComparison
from hpt_mlflow.stages.models import compare as compare
from hpt_mlflow.stages.models import lineage as lineage
from hpt_mlflow.stages.models import load_model as load_model
from hpt_mlflow.stages.models import promote as promote
from hpt_mlflow.stages.predict import predict as predict
from hpt_mlflow.stages.result import StageResult as StageResult
from hpt_mlflow.stages.study import study_plan as study_plan
from hpt_mlflow.stages.weights import export as export
from hpt_mlflow.stages.weights import import_weights as import_weights
from hpt_mlflow.stages.weights import make_whole as make_whole

# Paths become text.
Text: TypeAlias = str | PathLike[str]
_PLACES: dict[str, str]

__all__ = [
    "AdaptSettings",
    "Dataset",
    "EmbedSettings",
    "EvaluateSettings",
    "HptError",
    "Interval",
    "MainSettings",
    "ModelComparison",
    "PretrainSettings",
    "StageResult",
    "StudySettings",
    "TuneSettings",
    "adapt",
    "compare",
    "embed",
    "evaluate",
    "export",
    "import_weights",
    "inspect",
    "lineage",
    "load_model",
    "main",
    "make_whole",
    "open_dataset",
    "predict",
    "pretrain",
    "promote",
    "register_architecture",
    "register_method",
    "register_stage",
    "study",
    "study_plan",
    "tune",
]

def pretrain(
    *,
    data: Text = "builtin:noto",
    weights: Text | None = None,
    root: Text | None = None,
    images: Text | None = None,
    arch: Text | None = None,
    image_size: int | None = None,
    small_stem: bool = False,
    features: Literal["cls", "mean", "cls+mean"] | None = None,
    method: Literal["moco", "simclr", "byol", "lejepa", "dino"] = "moco",
    preset: Literal["quick", "gentle", "paper"] = "gentle",
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    clip_gradients: float | None = None,
    augment: Text = "crop,color,gray,blur,flip",
    strengths: Text | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    cuda_graph: Literal["auto", "on", "off"] = "auto",
    workers: int | None = None,
    cache_gib: float = 4.0,
    device: Text = "auto",
    nproc: int = 1,
    restarts: int = 0,
    seed: int = 0,
    split_seed: int = 0,
    milestones: Text = "25%,50%,100%",
    checkpoint_every: int = 1000,
    resume: Text = "auto",
    model_name: Text = "hpt",
    alias: Text | None = None,
    strict: bool = False,
    key_momentum: float | None = None,
    temperature: float | None = None,
    queue_size: int | None = None,
    bn_splits: int | None = None,
    target_momentum: float | None = None,
    sigreg_weight: float | None = None,
    teacher_momentum: float | None = None,
    teacher_temperature: float | None = None,
    prototypes: int | None = None,
) -> StageResult:
    """Train a backbone on a dataset from random weights or from `weights`, log it, and register it.

    With `steps=0` the backbone is registered as it is, without opening the dataset.

    Args:
        data: Images to learn from: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or
            torchvision:.  [default: builtin:noto]
        weights: Weights to start from: efficientnet-lite0 (trained on ImageNet); a file of DINOv2, DINOv3, MAE, MoCo,
            OpenSelfSup, torchvision, timm or Lightly (ResNets, ConvNeXts and vision transformers are recognised,
            others need arch); torchvision:NAME, such as torchvision:resnet50; or random. Default:
            efficientnet-lite0; with arch, small_stem or preset=paper: random.
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        images: Train on a subset: a count or a percentage, drawn from split_seed. Smaller subsets are nested in larger
            ones. Default: all images.
        arch: Backbone: a classification network of torchvision, by name, or timm:NAME.  [default: resnet18 (quick),
            resnet18 (gentle), resnet50 (paper)]
        image_size: Side of the square views, in pixels. Default: 32 from random weights, 64 from others, or the next
            multiple of a vision transformer's patches; with preset=paper 224.
        small_stem: For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32
            pixels.  [default: false]
        features: Features of a vision transformer: its class token, the mean of its patches, or both. Default: the
            class token of weights that are recognised as a vision transformer, else what the network's library
            takes.
        method: Self-supervised method; its own options take their defaults from preset.  [default: moco]
        preset: Defaults for options you do not set. gentle: AdamW with small steps for what it starts from and ten
            times larger ones for the head, milder augmentations, statistics kept; quick: SGD; both take minutes on
            two cores, and are the same from random weights; paper: the paper's.  [default: gentle]
        steps: Length of the training, in optimiser steps; 0: register the weights as they are.  [default: 200 (quick),
            600 (gentle), 5000 (paper); from random weights 600 (quick), 600 (gentle), 200000 (paper)]
        batch_size: Images per step.  [default: 256 (quick), 64 (gentle), 256 (paper); from random weights 256]
        optimizer: Optimiser, with the learning rate and decay that suit it. Default: the preset's, but AdamW for a
            network without BatchNorm, such as a vision transformer.
        learning_rate: Peak learning rate, after the preset's warm-up; falls to 0 along a cosine. With adamw: 0.0005
            from random weights, 0.0003 from others, 0.0001 from a parent whose chain began with random weights, and
            up to ten times as much for updates that touch little.  [default: 0.03 (quick), 0.0003 (gentle), 0.03
            (paper); from random weights 0.12 (quick), 0.12 (gentle), 0.03 (paper)]
        weight_decay: Weight decay.  [default: 0.0001 (quick), 0.01 (gentle), 0.0001 (paper); from random weights
            0.0001]
        layer_decay: Learning rate of each block of the backbone, over that of the next block towards the features; 1:
            the same for all. For vision transformers, 0.65 to 0.9 are usual.  [default: 1]
        drop_path: Stochastic depth: probability of leaving out the last block while training; falls linearly to 0 at
            the first block. Default: what the network's library does.
        clip_gradients: Largest norm of the gradients of a step. Default: any.
        augment: Augmentations that make a view: a comma-separated subset of crop, color, gray, blur, flip; or none.
            [default: crop,color,gray,blur,flip]
        strengths: Strengths of augmentations, such as crop_scale=0.3:1,jitter=0.2,blur_sigma=0.1:1,gray_p=0.1; the
            others are the preset's. Default: all the preset's.
        precision: Arithmetic of the networks. auto: bfloat16 if the hardware has it, else float32.  [default: auto]
        compile: Speed the networks up with torch.compile. auto: if the training is long enough for it to pay, and no
            CUDA graph is used.  [default: auto]
        cuda_graph: Do a step on a GPU as one CUDA graph, which is faster for small networks. auto: if one process
            trains, in float32 or bfloat16 and without compile=on; a graph is tried against plain steps first.
            [default: auto]
        workers: Processes that decode and crop images; 0: the training process itself. Default: chosen for the machine;
            a GPU crops decoded images itself, in its memory, if they take at most a quarter of it.
        cache_gib: Size of the cache of decoded images on disk (HPT_CACHE), in GiB; the least recently used go first. 0:
            none.  [default: 4.0]
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]
        nproc: Processes that train together on this machine, each on a GPU or a share of the cores.  [default: 1]
        restarts: With nproc: how often to restart all processes from the newest training state after one has died.
            [default: 0]
        seed: Seed of the weights, the order of the images and the views.  [default: 0]
        split_seed: Seed of the split into train, validation and test; keep it the same along a chain.  [default: 0]
        milestones: When to keep the backbone as a model: comma-separated steps or percentages; the last step is always
            kept.  [default: 25%,50%,100%]
        checkpoint_every: Steps between two training states kept as artifacts; 0: only when the training is interrupted.
            [default: 1000]
        resume: auto: resume the newest unfinished run with the same settings, data and parent; never: start anew; or
            the id of the run to resume.  [default: auto]
        model_name: Name of the registered model that gets the result as a new version.  [default: hpt]
        alias: Alias for the new version, such as base, source or target.  [default: none]
        strict: Stop at the first unreadable image, instead of skipping up to 1% of them.  [default: false]
        key_momentum: Share of its weights that the key encoder keeps at each step. Only for method moco.  [default:
            0.99 (quick), 0.99 (gentle), 0.999 (paper)]
        temperature: Temperature of the loss. Only for method moco or simclr.  [default: moco: 0.1 (quick), 0.1
            (gentle), 0.2 (paper); simclr: 0.5 (quick), 0.5 (gentle), 0.1 (paper)]
        queue_size: Keys in the queue of negatives; cut to a multiple of the batch that the dataset can fill. Only for
            method moco.  [default: 4096 (quick), 4096 (gentle), 65536 (paper)]
        bn_splits: Parts of the key batch with their own batch statistics (instead of ShuffleBN). Only for method moco.
            [default: 4]
        target_momentum: Share of its weights that the target network keeps at the first step; rises to 1. Only for
            method byol.  [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        sigreg_weight: Share of SIGReg in the loss; the rest is the distance of views. Only for method lejepa.
            [default: 0.02]
        teacher_momentum: Share of its weights that the teacher keeps at first; rises to 1. Only for method dino.
            [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        teacher_temperature: Temperature of the teacher after its warm-up; lower is sharper. Only for method dino.
            [default: 0.04 (quick), 0.04 (gentle), 0.07 (paper)]
        prototypes: Prototypes that images are assigned to; by default at most one per image. Only for method dino.
            [default: 4096 (quick), 4096 (gentle), 65536 (paper)]

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """

def adapt(
    *,
    data: Text = "builtin:twemoji",
    parent: Text = "models:/hpt/latest",
    update: Text = "all",
    root: Text | None = None,
    images: Text | None = None,
    arch: Text | None = None,
    image_size: int | None = None,
    small_stem: bool = False,
    features: Literal["cls", "mean", "cls+mean"] | None = None,
    method: Literal["moco", "simclr", "byol", "lejepa", "dino"] = "moco",
    preset: Literal["quick", "gentle", "paper"] = "gentle",
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    clip_gradients: float | None = None,
    augment: Text = "crop,color,gray,blur,flip",
    strengths: Text | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    cuda_graph: Literal["auto", "on", "off"] = "auto",
    workers: int | None = None,
    cache_gib: float = 4.0,
    device: Text = "auto",
    nproc: int = 1,
    restarts: int = 0,
    seed: int = 0,
    split_seed: int = 0,
    milestones: Text = "25%,50%,100%",
    checkpoint_every: int = 1000,
    resume: Text = "auto",
    model_name: Text = "hpt",
    alias: Text | None = None,
    strict: bool = False,
    statistics: Literal["keep", "refresh"] | None = None,
    judge: Literal["auto", "none", "probe", "knn", "rotation", "consistency"] = "auto",
    on_no_gain: Literal["keep-parent", "register"] = "keep-parent",
    lora_rank: int | None = None,
    lora_targets: Text | None = None,
    store: Literal["whole", "delta"] = "whole",
    key_momentum: float | None = None,
    temperature: float | None = None,
    queue_size: int | None = None,
    bn_splits: int | None = None,
    target_momentum: float | None = None,
    sigreg_weight: float | None = None,
    teacher_momentum: float | None = None,
    teacher_temperature: float | None = None,
    prototypes: int | None = None,
) -> StageResult:
    """Continue training the backbone of `parent` on another dataset, log the result, and register it.

    Only the backbone is taken over. The projection head starts anew, as in the paper's reference code: it was trained
    to tell the images of the previous dataset apart.

    Args:
        data: Images to adapt to: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or
            torchvision:.  [default: builtin:twemoji]
        parent: Model to start from: a models:/ or runs:/ address, NAME@ALIAS, or an alias of --model-name.  [default:
            models:/hpt/latest]
        update: What may change. all: everything (HPT); norm: only normalisation layers, such as LayerNorm; last:N: the
            last N blocks, and what follows them; lora: low-rank changes of layers; explora or explora:N: the last N
            blocks (1) and all normalisation layers, and low-rank changes of the others; bn: only BatchNorm layers
            (HPT-BN); bn-stats: only their running statistics, without any gradient (the paper's Base).  [default:
            all]
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        images: Train on a subset: a count or a percentage, drawn from split_seed. Smaller subsets are nested in larger
            ones. Default: all images.
        arch: Backbone. Default: the parent's; another one is refused.
        image_size: Side of the square views, in pixels. Default: the parent's.
        small_stem: For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32
            pixels.  [default: false]
        features: Features of a vision transformer: its class token, the mean of its patches, or both. Default: the
            parent's.
        method: Self-supervised method; its own options take their defaults from preset.  [default: moco]
        preset: Defaults for options you do not set. gentle: AdamW with small steps for what it starts from and ten
            times larger ones for the head, milder augmentations, statistics kept; quick: SGD; both take minutes on
            two cores, and are the same from random weights; paper: the paper's.  [default: gentle]
        steps: Length of the training, in optimiser steps.  [default: 200 (quick), 600 (gentle), 5000 (paper)]
        batch_size: Images per step.  [default: 256 (quick), 64 (gentle), 256 (paper)]
        optimizer: Optimiser, with the learning rate and decay that suit it. Default: the preset's, but AdamW for a
            network without BatchNorm, such as a vision transformer.
        learning_rate: Peak learning rate, after the preset's warm-up; falls to 0 along a cosine. With adamw: 0.0005
            from random weights, 0.0003 from others, 0.0001 from a parent whose chain began with random weights, and
            up to ten times as much for updates that touch little.  [default: 0.03 (quick), 0.0003 (gentle), 0.03
            (paper)]
        weight_decay: Weight decay.  [default: 0.0001 (quick), 0.01 (gentle), 0.0001 (paper)]
        layer_decay: Learning rate of each block of the backbone, over that of the next block towards the features; 1:
            the same for all. For vision transformers, 0.65 to 0.9 are usual.  [default: 1]
        drop_path: Stochastic depth: probability of leaving out the last block while training; falls linearly to 0 at
            the first block. Default: what the network's library does.
        clip_gradients: Largest norm of the gradients of a step. Default: any.
        augment: Augmentations that make a view: a comma-separated subset of crop, color, gray, blur, flip; or none.
            [default: crop,color,gray,blur,flip]
        strengths: Strengths of augmentations, such as crop_scale=0.3:1,jitter=0.2,blur_sigma=0.1:1,gray_p=0.1; the
            others are the preset's. Default: all the preset's.
        precision: Arithmetic of the networks. auto: bfloat16 if the hardware has it, else float32.  [default: auto]
        compile: Speed the networks up with torch.compile. auto: if the training is long enough for it to pay, and no
            CUDA graph is used.  [default: auto]
        cuda_graph: Do a step on a GPU as one CUDA graph, which is faster for small networks. auto: if one process
            trains, in float32 or bfloat16 and without compile=on; a graph is tried against plain steps first.
            [default: auto]
        workers: Processes that decode and crop images; 0: the training process itself. Default: chosen for the machine;
            a GPU crops decoded images itself, in its memory, if they take at most a quarter of it.
        cache_gib: Size of the cache of decoded images on disk (HPT_CACHE), in GiB; the least recently used go first. 0:
            none.  [default: 4.0]
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]
        nproc: Processes that train together on this machine, each on a GPU or a share of the cores.  [default: 1]
        restarts: With nproc: how often to restart all processes from the newest training state after one has died.
            [default: 0]
        seed: Seed of the weights, the order of the images and the views.  [default: 0]
        split_seed: Seed of the split into train, validation and test; keep it the same along a chain.  [default: 0]
        milestones: When to keep the backbone as a model: comma-separated steps or percentages; the last step is always
            kept.  [default: 25%,50%,100%]
        checkpoint_every: Steps between two training states kept as artifacts; 0: only when the training is interrupted.
            [default: 1000]
        resume: auto: resume the newest unfinished run with the same settings, data and parent; never: start anew; or
            the id of the run to resume.  [default: auto]
        model_name: Name of the registered model that gets the result as a new version.  [default: hpt]
        alias: Alias for the new version, such as base, source or target.  [default: none]
        strict: Stop at the first unreadable image, instead of skipping up to 1% of them.  [default: false]
        statistics: What BatchNorm and images are normalised with. keep: what the parent used; refresh: the statistics
            of these images.  [default: refresh (quick), keep (gentle), refresh (paper)]
        judge: What chooses the best milestone, the parent among them. knn, probe: how well features predict labels, by
            validation; rotation: how well features predict rotations, without labels; consistency: whether views
            have the neighbours of their images, without labels, among milestones that are not below the parent by
            rotation; none: the last step is taken. auto: knn with labels, else consistency.  [default: auto]
        on_no_gain: If the judge prefers the parent to every milestone. keep-parent: register nothing, the result is the
            parent; register: register the best milestone all the same.  [default: keep-parent]
        lora_rank: Rank of low-rank changes, for update lora and explora. Default: 4.
        lora_targets: Layers that get low-rank changes: comma-separated ends of their names, such as attn.qkv,mlp.fc1.
            Default: the attention of a transformer; of another network, all linear layers and 1x1 convolutions.
        store: What a milestone keeps. whole: all weights; delta: only those that differ from the parent's, and of
            low-rank changes the two matrices; not for update=all. A delta is used like any other version, but its
            parent, a registered version, must not be deleted, and it does not stand alone: hpt make-whole copies it
            with all weights.  [default: whole]
        key_momentum: Share of its weights that the key encoder keeps at each step. Only for method moco.  [default:
            0.99 (quick), 0.99 (gentle), 0.999 (paper)]
        temperature: Temperature of the loss. Only for method moco or simclr.  [default: moco: 0.1 (quick), 0.1
            (gentle), 0.2 (paper); simclr: 0.5 (quick), 0.5 (gentle), 0.1 (paper)]
        queue_size: Keys in the queue of negatives; cut to a multiple of the batch that the dataset can fill. Only for
            method moco.  [default: 4096 (quick), 4096 (gentle), 65536 (paper)]
        bn_splits: Parts of the key batch with their own batch statistics (instead of ShuffleBN). Only for method moco.
            [default: 4]
        target_momentum: Share of its weights that the target network keeps at the first step; rises to 1. Only for
            method byol.  [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        sigreg_weight: Share of SIGReg in the loss; the rest is the distance of views. Only for method lejepa.
            [default: 0.02]
        teacher_momentum: Share of its weights that the teacher keeps at first; rises to 1. Only for method dino.
            [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        teacher_temperature: Temperature of the teacher after its warm-up; lower is sharper. Only for method dino.
            [default: 0.04 (quick), 0.04 (gentle), 0.07 (paper)]
        prototypes: Prototypes that images are assigned to; by default at most one per image. Only for method dino.
            [default: 4096 (quick), 4096 (gentle), 65536 (paper)]

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """

def tune(
    *,
    data: Text = "builtin:twemoji",
    parent: Text = "models:/hpt/latest",
    update: Text = "all",
    root: Text | None = None,
    images: Text | None = None,
    arch: Text | None = None,
    image_size: int | None = None,
    small_stem: bool = False,
    features: Literal["cls", "mean", "cls+mean"] | None = None,
    method: Literal["moco", "simclr", "byol", "lejepa", "dino"] = "moco",
    preset: Literal["quick", "gentle", "paper"] = "gentle",
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    clip_gradients: float | None = None,
    augment: Text = "crop,color,gray,blur,flip",
    strengths: Text | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    cuda_graph: Literal["auto", "on", "off"] = "auto",
    workers: int = 1,
    cache_gib: float = 4.0,
    device: Text = "auto",
    nproc: int = 1,
    restarts: int = 0,
    seed: int = 0,
    split_seed: int = 0,
    milestones: Text = "25%,50%,100%",
    checkpoint_every: int = 1000,
    resume: Literal["auto", "never"] = "auto",
    model_name: Text = "hpt",
    alias: Text | None = None,
    strict: bool = False,
    statistics: Literal["keep", "refresh"] | None = None,
    judge: Literal["auto", "none", "probe", "knn", "rotation", "consistency"] = "auto",
    on_no_gain: Literal["keep-parent", "register"] = "keep-parent",
    lora_rank: int | None = None,
    lora_targets: Text | None = None,
    store: Literal["whole", "delta"] = "whole",
    tune_strengths: bool = False,
    objective: Literal["auto", "probe", "knn", "rotation", "consistency", "infonce"] = "auto",
    study: Text | None = None,
    storage: Text = "journal:hpt_studies.journal",
    trial_steps: int | None = None,
    pruner: Literal["halving", "hyperband", "none"] = "halving",
    first_rung: int | None = None,
    reduction: int = 4,
    trials: int | None = None,
    minutes: float | None = None,
    adapt_winner: bool = True,
    key_momentum: float | None = None,
    temperature: float | None = None,
    queue_size: int | None = None,
    bn_splits: int | None = None,
    target_momentum: float | None = None,
    sigreg_weight: float | None = None,
    teacher_momentum: float | None = None,
    teacher_temperature: float | None = None,
    prototypes: int | None = None,
) -> StageResult:
    """Search the augmentations with which a parent adapts best; adapt with them in full, evaluate and register.

    The first process with a study leads the search, with a run of its own; every other one with the same study and
    storage joins until no trial is left. The same command resumes an interrupted search.

    Args:
        data: Images to adapt to: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or
            torchvision:.  [default: builtin:twemoji]
        parent: Model to start from: a models:/ or runs:/ address, NAME@ALIAS, or an alias of --model-name.  [default:
            models:/hpt/latest]
        update: What may change. all: everything (HPT); norm: only normalisation layers, such as LayerNorm; last:N: the
            last N blocks, and what follows them; lora: low-rank changes of layers; explora or explora:N: the last N
            blocks (1) and all normalisation layers, and low-rank changes of the others; bn: only BatchNorm layers
            (HPT-BN); bn-stats: only their running statistics, without any gradient (the paper's Base).  [default:
            all]
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        images: Train on a subset: a count or a percentage, drawn from split_seed. Smaller subsets are nested in larger
            ones. Default: all images.
        arch: Backbone. Default: the parent's; another one is refused.
        image_size: Side of the square views, in pixels. Default: the parent's.
        small_stem: For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32
            pixels.  [default: false]
        features: Features of a vision transformer: its class token, the mean of its patches, or both. Default: the
            parent's.
        method: Self-supervised method; its own options take their defaults from preset.  [default: moco]
        preset: Defaults for options you do not set. gentle: AdamW with small steps for what it starts from and ten
            times larger ones for the head, milder augmentations, statistics kept; quick: SGD; both take minutes on
            two cores, and are the same from random weights; paper: the paper's.  [default: gentle]
        steps: Length of the winner's adaptation, in optimiser steps.  [default: 200 (quick), 600 (gentle), 5000
            (paper)]
        batch_size: Images per step.  [default: 256 (quick), 64 (gentle), 256 (paper)]
        optimizer: Optimiser, with the learning rate and decay that suit it. Default: the preset's, but AdamW for a
            network without BatchNorm, such as a vision transformer.
        learning_rate: Peak learning rate, after the preset's warm-up; falls to 0 along a cosine. With adamw: 0.0005
            from random weights, 0.0003 from others, 0.0001 from a parent whose chain began with random weights, and
            up to ten times as much for updates that touch little.  [default: 0.03 (quick), 0.0003 (gentle), 0.03
            (paper)]
        weight_decay: Weight decay.  [default: 0.0001 (quick), 0.01 (gentle), 0.0001 (paper)]
        layer_decay: Learning rate of each block of the backbone, over that of the next block towards the features; 1:
            the same for all. For vision transformers, 0.65 to 0.9 are usual.  [default: 1]
        drop_path: Stochastic depth: probability of leaving out the last block while training; falls linearly to 0 at
            the first block. Default: what the network's library does.
        clip_gradients: Largest norm of the gradients of a step. Default: any.
        augment: Augmentations to choose from: a comma-separated choice of crop, color, gray, blur, flip.  [default:
            crop,color,gray,blur,flip]
        strengths: Strengths of augmentations, such as crop_scale=0.3:1,jitter=0.2,blur_sigma=0.1:1,gray_p=0.1; the
            others are the preset's. Default: all the preset's.
        precision: Arithmetic of the networks. auto: bfloat16 if the hardware has it, else float32.  [default: auto]
        compile: Speed the networks up with torch.compile. auto: if the training is long enough for it to pay, and no
            CUDA graph is used.  [default: auto]
        cuda_graph: Do a step on a GPU as one CUDA graph, which is faster for small networks. auto: if one process
            trains, in float32 or bfloat16 and without compile=on; a graph is tried against plain steps first.
            [default: auto]
        workers: Search workers: processes that run trials in parallel on this machine, each on a GPU or a share of the
            cores.  [default: 1]
        cache_gib: Size of the cache of decoded images on disk (HPT_CACHE), in GiB; the least recently used go first. 0:
            none.  [default: 4.0]
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]
        nproc: Processes that train together on this machine, each on a GPU or a share of the cores.  [default: 1]
        restarts: With nproc: how often to restart all processes from the newest training state after one has died.
            [default: 0]
        seed: Seed of the weights, the order of the images and the views.  [default: 0]
        split_seed: Seed of the split into train, validation and test; keep it the same along a chain.  [default: 0]
        milestones: When to keep the backbone as a model: comma-separated steps or percentages; the last step is always
            kept.  [default: 25%,50%,100%]
        checkpoint_every: Steps between two training states kept as artifacts; 0: only when the training is interrupted.
            [default: 1000]
        resume: auto: reuse the full adaptations that this search has already made; never: repeat them. The search
            itself is resumed by its name.  [default: auto]
        model_name: Name of the registered model that gets the result as a new version.  [default: hpt]
        alias: Alias for the new version, such as base, source or target.  [default: none]
        strict: Stop at the first unreadable image, instead of skipping up to 1% of them.  [default: false]
        statistics: What BatchNorm and images are normalised with. keep: what the parent used; refresh: the statistics
            of these images.  [default: refresh (quick), keep (gentle), refresh (paper)]
        judge: What chooses the best milestone, the parent among them. knn, probe: how well features predict labels, by
            validation; rotation: how well features predict rotations, without labels; consistency: whether views
            have the neighbours of their images, without labels, among milestones that are not below the parent by
            rotation; none: the last step is taken. auto: knn with labels, else consistency.  [default: auto]
        on_no_gain: If the judge prefers the parent to every milestone. keep-parent: register nothing, the result is the
            parent; register: register the best milestone all the same.  [default: keep-parent]
        lora_rank: Rank of low-rank changes, for update lora and explora. Default: 4.
        lora_targets: Layers that get low-rank changes: comma-separated ends of their names, such as attn.qkv,mlp.fc1.
            Default: the attention of a transformer; of another network, all linear layers and 1x1 convolutions.
        store: What a milestone keeps. whole: all weights; delta: only those that differ from the parent's, and of
            low-rank changes the two matrices; not for update=all. A delta is used like any other version, but its
            parent, a registered version, must not be deleted, and it does not stand alone: hpt make-whole copies it
            with all weights.  [default: whole]
        tune_strengths: Also search the strengths of the augmentations, with Optuna's TPE; else only the grid of
            subsets.  [default: false]
        objective: The score of a trial. probe: linear probe on validation; knn: nearest neighbours on validation;
            rotation: predicting the rotation of images, which needs no labels; consistency: whether views have the
            neighbours of their images, without labels; infonce: the training loss, a weak indicator. auto: probe if
            there are labels, else rotation.  [default: auto]
        study: Name of the search in the storage (an Optuna study); the same name resumes it. Default: made from data,
            parent and settings.
        storage: Where the search is stored: journal:FILE, or a database such as
            postgresql://USER:PASSWORD@HOST/DATABASE, which needs the extra postgresql.  [default:
            journal:hpt_studies.journal]
        trial_steps: Length of a whole trial, in optimiser steps. Default: half of steps.
        pruner: Which trials continue after a rung. halving: the best of all, by successive halving; hyperband:
            Optuna's, with brackets that begin at later rungs; none: every trial is trained in full.  [default:
            halving]
        first_rung: Steps of a trial before it is first scored. Default: 1/32 of trial_steps.
        reduction: One trial in N continues after a rung, and the next rung is N times as far.  [default: 4]
        trials: Maximum number of trials. Default: all subsets; with tune_strengths twice as many.
        minutes: Maximum minutes that this command spends on trials. Default: no limit.
        adapt_winner: Adapt in full with the best subset and with the paper's; evaluate both on test; register the best.
            [default: true]
        key_momentum: Share of its weights that the key encoder keeps at each step. Only for method moco.  [default:
            0.99 (quick), 0.99 (gentle), 0.999 (paper)]
        temperature: Temperature of the loss. Only for method moco or simclr.  [default: moco: 0.1 (quick), 0.1
            (gentle), 0.2 (paper); simclr: 0.5 (quick), 0.5 (gentle), 0.1 (paper)]
        queue_size: Keys in the queue of negatives; cut to a multiple of the batch that the dataset can fill. Only for
            method moco.  [default: 4096 (quick), 4096 (gentle), 65536 (paper)]
        bn_splits: Parts of the key batch with their own batch statistics (instead of ShuffleBN). Only for method moco.
            [default: 4]
        target_momentum: Share of its weights that the target network keeps at the first step; rises to 1. Only for
            method byol.  [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        sigreg_weight: Share of SIGReg in the loss; the rest is the distance of views. Only for method lejepa.
            [default: 0.02]
        teacher_momentum: Share of its weights that the teacher keeps at first; rises to 1. Only for method dino.
            [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        teacher_temperature: Temperature of the teacher after its warm-up; lower is sharper. Only for method dino.
            [default: 0.04 (quick), 0.04 (gentle), 0.07 (paper)]
        prototypes: Prototypes that images are assigned to; by default at most one per image. Only for method dino.
            [default: 4096 (quick), 4096 (gentle), 65536 (paper)]

    Raises:
        HptError: something is wrong that the user can mend; before any long work if possible.
    """

def evaluate(
    *,
    data: Text = "builtin:twemoji",
    model: Text = "models:/hpt/latest",
    root: Text | None = None,
    protocol: Literal["fast", "paper", "finetune"] = "fast",
    labels: Text | None = None,
    steps: int | None = None,
    repeats: int = 1,
    untrained: bool = True,
    classifier_name: Text | None = None,
    leave_out: Text | None = None,
    allow_seen: bool = False,
    seed: int = 0,
    split_seed: int = 0,
    workers: int | None = None,
    cache_gib: float = 4.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: Text = "auto",
    batch_size: int = 256,
) -> StageResult:
    """Learn labels from a model, choose on validation, and test once, on images that no stage has trained on.

    The same is done with an untrained network of the same architecture, since random features are a strong baseline on
    small images. Of a run, each milestone is evaluated, and the last one in full. The classifier is registered.

    Args:
        data: Labelled images: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or torchvision:.
            [default: builtin:twemoji]
        model: Model to evaluate: a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model hpt. Of a run,
            runs:/ID, every milestone is evaluated.  [default: models:/hpt/latest]
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        protocol: How labels are learned. fast: a linear probe on features that are computed once, its regularisation
            chosen on validation; paper: a linear probe by SGD on random crops and flips, as the paper trains it;
            finetune: all weights fine-tuned from these labels, schedule and learning rate chosen on validation.
            [default: fast]
        labels: Labelled images to learn from: a number or a percentage of the train part, at least one per class.
            Default: all of them; for finetune 1000.
        steps: Steps of paper (the paper's: 5000) or of each of finetune's trainings. Default: the paper's.
        repeats: Repetitions of paper or finetune with other seeds, for a mean and a spread.  [default: 1]
        untrained: Also evaluate an untrained network of the same architecture in the same way.  [default: true]
        classifier_name: Registered model that gets the classifier; none: keep it with the run only. Default:
            NAME-classifier.
        leave_out: Classes to leave out, separated by commas (%2C for a comma in a name), such as one that only test
            has. Default: none.
        allow_seen: Evaluate even if a stage of the chain has trained on test images, or if this cannot be checked.
            [default: false]
        seed: Seed of the untrained network, of drawn labels and of training.  [default: 0]
        split_seed: Seed of the split into train, validation and test; keep it the same along a chain.  [default: 0]
        workers: Threads that decode images, or, for thousands of images and a GPU, processes. Default: chosen for the
            machine.
        cache_gib: Size of the cache of decoded images on disk (HPT_CACHE), in GiB; the least recently used go first. 0:
            none.  [default: 4.0]
        precision: Arithmetic of frozen features. auto: bfloat16 on a GPU that has it in hardware, else float32.
            [default: auto]
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]
        batch_size: Images in a forward pass of frozen features.  [default: 256]

    Raises:
        HptError: the user has to change something; before any long work if possible.
    """

def embed(
    *,
    data: Text = "builtin:twemoji",
    model: Text = "models:/hpt/latest",
    to: Text = "embeddings.parquet",
    root: Text | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    patches: bool = False,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    batch_size: int = 256,
    workers: int | None = None,
    device: Text = "auto",
) -> StageResult:
    """Write a row for each image: its path, its features, its labels, and the prediction if the model is a classifier.

    Images that cannot be read have no features, and say why in the column `error`.

    Args:
        data: Images: FOLDER, folder:, list:, csv:, shards:, zip:, parquet:, paper:, builtin: or torchvision:. Labels
            are not needed.  [default: builtin:twemoji]
        model: Backbone or classifier: a models:/ or runs:/ address, NAME@ALIAS, or an alias of the model hpt.
            [default: models:/hpt/latest]
        to: File that is written, or replaced. After an interruption, the same command resumes from TO.parts.  [default:
            embeddings.parquet]
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        dtype: Type of the features in the file.  [default: float32]
        patches: Also store the map of features before they are averaged over the image.  [default: false]
        precision: Arithmetic of features. auto: bfloat16 on a GPU that has it in hardware, else float32.  [default:
            auto]
        batch_size: Images in a forward pass.  [default: 256]
        workers: Threads that decode images, or, for thousands of images and a GPU, processes. Default: chosen for the
            machine.
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]

    Returns:
        The model that was used, and how many images there are, how many could not be read, and images per second.

    Raises:
        HptError: there is no such model, there are no readable images, or the file cannot be written.
    """

def inspect(
    *,
    data: Text = "builtin:twemoji",
    page: Text | None = None,
    list_to: Text | None = None,
    root: Text | None = None,
    near: bool = True,
    model: Text | None = None,
    similarity: float = 0.95,
    split_seed: int = 0,
    workers: int | None = None,
    batch_size: int = 256,
    device: Text = "auto",
) -> StageResult:
    """Look at every image of some datasets, and show what was found on a page.

    Args:
        data: Datasets, separated by spaces, in the order of a chain: FOLDER, folder:, list:, csv:, shards:, paper:,
            builtin: or torchvision:. Quote an address that has spaces.  [default: builtin:twemoji]
        page: File that the page is also written to, even if MLflow cannot be reached.  [default: none]
        list_to: File to write for list:, with the images that training may see, without near copies of each other or of
            test images, and without blank and unreadable ones.  [default: none]
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        near: Look for near copies: re-encoded, resized, slightly cropped or mirrored images.  [default: true]
        model: Also compare features of this model: a models:/ or runs:/ address, NAME@ALIAS, or an alias of hpt.
            [default: none]
        similarity: Least cosine of features that are alike.  [default: 0.95]
        split_seed: Seed of the split into train, validation and test.  [default: 0]
        workers: Threads that decode images, or, for thousands of images and a GPU, processes. Default: chosen for the
            machine.
        batch_size: Images in a forward pass of the model.  [default: 256]
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]

    Returns:
        The counts: images, left out, unreadable, blank and saturated ones, near copies, test images with a near copy
        among what is trained on.

    Raises:
        HptError: there is no such dataset or model, or a file cannot be written.
    """

def main(
    *,
    base: Text = "builtin:noto",
    source: Text | None = None,
    target: Text = "builtin:twemoji",
    root: Text | None = None,
    preset: Literal["quick", "gentle", "paper"] = "gentle",
    base_steps: int | None = None,
    adapt_steps: int | None = None,
    device: Text = "auto",
    nproc: int = 1,
    seed: int = 0,
    split_seed: int = 0,
    resume: Text = "auto",
    model_name: Text = "hpt",
) -> StageResult:
    """Train on base, then on source where there is one, then on target; evaluate on target where it has labels.

    Args:
        base: Images that the base model learns from.  [default: builtin:noto]
        source: Images of a stage between base and target, nearer to the target. Default: none.
        target: Images that the model is for; labels, if any, are used only to evaluate it.  [default: builtin:twemoji]
        root: Folder that relative paths start from, and that holds torchvision: datasets.  [default: none]
        preset: Defaults of all training options (see adapt).  [default: gentle]
        base_steps: Optimiser steps on base. Default: the preset's.
        adapt_steps: Optimiser steps on source and on target. Default: the preset's.
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]
        nproc: Processes that train together on this machine (see pretrain).  [default: 1]
        seed: Seed of the training.  [default: 0]
        split_seed: Seed of the split into train, validation and test.  [default: 0]
        resume: auto: resume the newest unfinished run with the same settings, data and parent; never: start anew; or
            the id of the run to resume.  [default: auto]
        model_name: Name of the registered model that gets the versions.  [default: hpt]

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """

def study(
    *,
    base: Text = "builtin:noto",
    source: Text | None = None,
    target: Text = "builtin:twemoji",
    root: Text | None = None,
    images: Text | None = None,
    arch: Text | None = None,
    image_size: int | None = None,
    small_stem: bool = False,
    features: Literal["cls", "mean", "cls+mean"] | None = None,
    method: Literal["moco", "simclr", "byol", "lejepa", "dino"] = "moco",
    preset: Literal["quick", "gentle", "paper"] = "quick",
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    clip_gradients: float | None = None,
    augment: Text = "crop,color,gray,blur,flip",
    strengths: Text | None = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    cuda_graph: Literal["auto", "on", "off"] = "auto",
    workers: int | None = None,
    cache_gib: float = 4.0,
    device: Text = "auto",
    nproc: int = 1,
    restarts: int = 0,
    seed: int = 0,
    split_seed: int = 0,
    milestones: Text = "2%,5%,10%,20%,35%,50%,75%,100%",
    checkpoint_every: int = 1000,
    resume: Text = "auto",
    model_name: Text = "hpt-study",
    alias: Text | None = None,
    strict: bool = False,
    study: Literal[
        "separability", "semi-supervised", "sequential", "augmentation", "data-amount", "methods"
    ] = "separability",
    base_model: Text | None = None,
    base_steps: int | None = None,
    source_steps: int | None = None,
    adapt_learning_rate: float | None = None,
    seeds: int = 3,
    protocol: Literal["fast", "paper", "finetune"] = "fast",
    protocol_steps: int | None = None,
    labels: Text = "1000,100%",
    amounts: Text = "1%,10%,25%,50%,100%",
    methods: Text | None = None,
    every_subset: bool = False,
    at_once: int = 1,
    dry_run: bool = False,
    own_lengths: bool = False,
    key_momentum: float | None = None,
    temperature: float | None = None,
    queue_size: int | None = None,
    bn_splits: int | None = None,
    target_momentum: float | None = None,
    sigreg_weight: float | None = None,
    teacher_momentum: float | None = None,
    teacher_temperature: float | None = None,
    prototypes: int | None = None,
) -> StageResult | None:
    """Run the trainings and evaluations of one of the paper's experiments, and answer its claims.

    Finished stages with the same settings, data and parent are reused, from any run. The same command resumes what was
    interrupted.

    Args:
        base: Images that the Base learns from.  [default: builtin:noto]
        source: Images of a stage between base and target, nearer to the target. Default: none.
        target: Labelled images that the models are for.  [default: builtin:twemoji]
        root: Folder that relative paths in --data start from, and that holds the files of torchvision: datasets.
            [default: none]
        images: Train on a subset: a count or a percentage, drawn from split_seed. Smaller subsets are nested in larger
            ones. Default: all images.
        arch: Backbone: a classification network of torchvision, by name, or timm:NAME.  [default: resnet18 (quick),
            resnet18 (gentle), resnet50 (paper)]
        image_size: Side of the square views, in pixels.  [default: 32 (quick), 32 (gentle), 224 (paper)]
        small_stem: For ResNets: a 3x3 convolution of stride 1 without max pooling in front, for images of about 32
            pixels.  [default: false]
        features: Features of a vision transformer: its class token, the mean of its patches, or both. Default: the
            class token of weights that are recognised as a vision transformer, else what the network's library
            takes.
        method: Self-supervised method; its own options take their defaults from preset.  [default: moco]
        preset: Defaults of all training options (see adapt).  [default: quick]
        steps: Optimiser steps on the target, of all methods alike. Default: the preset's of adapt.
        batch_size: Images per step.  [default: 256]
        optimizer: Optimiser, with the learning rate and decay that suit it. Default: the preset's, but AdamW for a
            network without BatchNorm, such as a vision transformer.
        learning_rate: Peak learning rate, after the preset's warm-up; falls to 0 along a cosine. With adamw: 0.0005
            from random weights, 0.0003 from others, 0.0001 from a parent whose chain began with random weights, and
            up to ten times as much for updates that touch little.  [default: 0.12 (quick), 0.12 (gentle), 0.03
            (paper)]
        weight_decay: Weight decay.  [default: 0.0001]
        layer_decay: Learning rate of each block of the backbone, over that of the next block towards the features; 1:
            the same for all. For vision transformers, 0.65 to 0.9 are usual.  [default: 1]
        drop_path: Stochastic depth: probability of leaving out the last block while training; falls linearly to 0 at
            the first block. Default: what the network's library does.
        clip_gradients: Largest norm of the gradients of a step. Default: any.
        augment: Augmentations that make a view: a comma-separated subset of crop, color, gray, blur, flip; or none.
            [default: crop,color,gray,blur,flip]
        strengths: Strengths of augmentations, such as crop_scale=0.3:1,jitter=0.2,blur_sigma=0.1:1,gray_p=0.1; the
            others are the preset's. Default: all the preset's.
        precision: Arithmetic of the networks. auto: bfloat16 if the hardware has it, else float32.  [default: auto]
        compile: Speed the networks up with torch.compile. auto: if the training is long enough for it to pay, and no
            CUDA graph is used.  [default: auto]
        cuda_graph: Do a step on a GPU as one CUDA graph, which is faster for small networks. auto: if one process
            trains, in float32 or bfloat16 and without compile=on; a graph is tried against plain steps first.
            [default: auto]
        workers: Processes that decode and crop images; 0: the training process itself. Default: chosen for the machine;
            a GPU crops decoded images itself, in its memory, if they take at most a quarter of it.
        cache_gib: Size of the cache of decoded images on disk (HPT_CACHE), in GiB; the least recently used go first. 0:
            none.  [default: 4.0]
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.  [default: auto]
        nproc: Processes that train together on this machine, each on a GPU or a share of the cores.  [default: 1]
        restarts: With nproc: how often to restart all processes from the newest training state after one has died.
            [default: 0]
        seed: Seed of the weights, the order of the images and the views.  [default: 0]
        split_seed: Seed of the split into train, validation and test; keep it the same along a chain.  [default: 0]
        milestones: Of separability: when models on the target are looked at, as comma-separated steps or percentages.
            [default: 2%,5%,10%,20%,35%,50%,75%,100%]
        checkpoint_every: Steps between two training states kept as artifacts; 0: only when the training is interrupted.
            [default: 1000]
        resume: auto: resume the newest unfinished run with the same settings, data and parent; never: start anew; or
            the id of the run to resume.  [default: auto]
        model_name: Name of the registered model that gets the results as new versions.  [default: hpt-study]
        alias: Alias for the new version, such as base, source or target.  [default: none]
        strict: Stop at the first unreadable image, instead of skipping up to 1% of them.  [default: false]
        study: separability: accuracy against pretraining steps; semi-supervised: fine-tuning on few labels; sequential:
            which sequence of stages is best; augmentation: what is lost without some augmentations; data-amount:
            how many images of the target are needed; methods: which self-supervised method is best in equal time.
            [default: separability]
        base_model: Registered model to take for the Base, instead of training one on base.  [default: none]
        base_steps: Optimiser steps on base. Default: the preset's.
        source_steps: Optimiser steps on source. Default: as on the target.
        adapt_learning_rate: Peak learning rate of what starts from a model, on source and target. Default:
            learning_rate, or the preset's for it.
        seeds: Repetitions, each with weights, views and a split of its own.  [default: 3]
        protocol: How models are evaluated (see evaluate); semi-supervised is always fine-tuned.  [default: fast]
        protocol_steps: Steps of the paper's probe, or of each of semi-supervised's fine-tunings. Default: the paper's.
        labels: Of semi-supervised: numbers or percentages of labels, separated by commas.  [default: 1000,100%]
        amounts: Of data-amount: numbers or percentages of the target's images.  [default: 1%,10%,25%,50%,100%]
        methods: Of methods: names of those to compare, separated by commas; each takes as many steps as fit into the
            time of steps with moco. Default: all.
        every_subset: Of augmentation: all 32 subsets, instead of the paper's five.  [default: false]
        at_once: Stages that run side by side on this machine, each on a share of the cores.  [default: 1]
        dry_run: Only print what would be run, its cost in steps, and an estimate of the time.  [default: false]
        own_lengths: Of separability: train anew for each milestone, with a schedule that ends there, as the paper does;
            otherwise all milestones are of one training.  [default: false]
        key_momentum: Share of its weights that the key encoder keeps at each step. Only for method moco.  [default:
            0.99 (quick), 0.99 (gentle), 0.999 (paper)]
        temperature: Temperature of the loss. Only for method moco or simclr.  [default: moco: 0.1 (quick), 0.1
            (gentle), 0.2 (paper); simclr: 0.5 (quick), 0.5 (gentle), 0.1 (paper)]
        queue_size: Keys in the queue of negatives; cut to a multiple of the batch that the dataset can fill. Only for
            method moco.  [default: 4096 (quick), 4096 (gentle), 65536 (paper)]
        bn_splits: Parts of the key batch with their own batch statistics (instead of ShuffleBN). Only for method moco.
            [default: 4]
        target_momentum: Share of its weights that the target network keeps at the first step; rises to 1. Only for
            method byol.  [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        sigreg_weight: Share of SIGReg in the loss; the rest is the distance of views. Only for method lejepa.
            [default: 0.02]
        teacher_momentum: Share of its weights that the teacher keeps at first; rises to 1. Only for method dino.
            [default: 0.99 (quick), 0.99 (gentle), 0.996 (paper)]
        teacher_temperature: Temperature of the teacher after its warm-up; lower is sharper. Only for method dino.
            [default: 0.04 (quick), 0.04 (gentle), 0.07 (paper)]
        prototypes: Prototypes that images are assigned to; by default at most one per image. Only for method dino.
            [default: 4096 (quick), 4096 (gentle), 65536 (paper)]

    Returns:
        None for a dry run.

    Raises:
        HptError: something that the user can mend is wrong; before any long work if possible.
    """
