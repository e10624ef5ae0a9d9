"""What a training starts from: random weights, weights from elsewhere, or a registered model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone, with_architecture
from hpt_mlflow.models.channels import COLOURS, widen
from hpt_mlflow.models.checkpoint import copy_to_cpu
from hpt_mlflow.models.delta import DeltaParent
from hpt_mlflow.models.efficientnet_lite import ARCH, SOURCE, read_efficientnet_lite0
from hpt_mlflow.models.foreign import IMAGENET_SIZE, ForeignWeights, read_weights
from hpt_mlflow.models.learning import check_update
from hpt_mlflow.models.torchvision_weights import PREFIX, read_torchvision_weights
from hpt_mlflow.models.update import parse_update
from hpt_mlflow.settings import AdaptSettings, PretrainSettings
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import is_version
from hpt_mlflow.tracking.models.store import FoundModel
from hpt_mlflow.training.plan import PRESETS


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        chain: names of the datasets behind the backbone, oldest first.
        parent: address of the model that it comes from, or name and checksum of the file; None for random weights.
        parent_method: the self-supervised method of the stage that made the parent; empty if unknown or none.
        weights: tags that say where weights from elsewhere come from.
        statistics: what its images were normalised with; None for random weights.
        origin: what the chain began with; see `tags.ORIGIN`.
        delta_parent: whose weights what is kept is a difference from; None to keep it whole.
    """

    backbone: nn.Module
    feature_size: int
    architecture: Architecture
    chain: tuple[str, ...] = ()
    parent: str | None = None
    parent_method: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    statistics: ChannelStatistics | None = None
    origin: str = tag.PUBLISHED
    delta_parent: DeltaParent | None = None


def start_from_random_weights(settings: PretrainSettings) -> Start:
    """A new network, seeded."""
    preset = PRESETS[settings.preset]
    architecture = Architecture(
        settings.arch or preset.arch,
        settings.image_size or preset.image_size,
        settings.small_stem,
        features=settings.features or "",
    )
    return Start(*build_backbone(architecture, settings.seed), architecture, origin=tag.RANDOM)


def start_from_parent(settings: AdaptSettings, parent: FoundModel) -> Start:
    """The backbone of a registered model.

    Raises:
        HptError: the settings ask for another network, for an update that it cannot have, or for a difference from
            what is not registered.
    """
    card = parent.card
    delta_parent = _delta_parent(parent) if settings.store == tag.DELTA else None
    architecture = card.architecture.requested(
        settings.parent, settings.arch, settings.image_size, settings.small_stem, settings.features
    )
    backbone, feature_size = with_architecture(parent.backbone, card.architecture, architecture)
    update = parse_update(settings.update, settings.lora_rank, settings.lora_targets)
    check_update(backbone, update, architecture)
    return Start(
        backbone,
        feature_size,
        architecture,
        card.chain,
        parent.uri,
        parent.tags.get(tag.METHOD, ""),
        statistics=ChannelStatistics(card.mean, card.std),
        origin=parent.tags.get(tag.ORIGIN, tag.PUBLISHED),
        delta_parent=delta_parent,
    )


def _delta_parent(parent: FoundModel) -> DeltaParent:
    """The parent as it is now, before its backbone learns."""
    if not is_version(parent.uri):
        raise HptError(
            f"{parent.uri} is not a registered version, as store=delta needs to find it again",
            f'register it first, by mlflow.register_model("{parent.uri}", NAME), or use store=whole',
            setting="parent",
        )
    return DeltaParent(parent.uri, copy_to_cpu(parent.backbone.state_dict()))


def start_from_weights(weights: ForeignWeights) -> Start:
    """A backbone with weights from elsewhere."""
    backbone, feature_size = build_backbone(weights.architecture)
    backbone.load_state_dict(dict(weights.state))
    return Start(
        backbone,
        feature_size,
        weights.architecture,
        chain=weights.chain,
        parent=f"{weights.file} (sha256 {weights.sha256})",
        weights={
            tag.WEIGHTS: weights.file,
            tag.WEIGHTS_SHA256: weights.sha256,
            tag.WEIGHTS_FORMAT: weights.format,
        },
        statistics=ChannelStatistics(weights.mean, weights.std),
    )


def for_channels(start: Start, channels: int, seed: int) -> Start:
    """The start for images of other channels: a new network has new weights, and one for RGB is widened.

    What was learned of RGB says nothing of the mean and deviation of other channels.

    Raises:
        HptError: it takes other channels than RGB, or cannot take these.
    """
    architecture = start.architecture._replace(channels=channels)
    if architecture == start.architecture:
        return start
    if start.parent is None:
        return replace(start, backbone=build_backbone(architecture, seed)[0], architecture=architecture)
    if start.architecture.channels != COLOURS:
        raise HptError(
            f"{start.parent} takes images of {start.architecture.channels} channels, and these have {channels}",
            "choose bands with ?bands=1,2,3 after the address",
            setting="data",
        )
    widen(start.backbone, channels, architecture.name)
    return replace(start, architecture=architecture, statistics=None)


def find_weights(
    source: str,
    arch: str | None,
    image_size: int | None,
    small_stem: bool,
    features: str | None = None,
    default_size: int | None = None,
) -> ForeignWeights:
    """Read weights from a file, from torchvision, or from the package of EfficientNet-Lite0.

    Args:
        arch, image_size, small_stem, features: the user's settings; None or False if not given.
        default_size: the image size if none is given. Default: that of the weights.

    Raises:
        HptError: they cannot be read safely, or do not fit; says which tensor.
    """
    if source == SOURCE:
        if arch not in (None, ARCH):
            raise HptError(f"{SOURCE} is a {ARCH}, not a {arch}", "leave arch out", setting="arch")
        weights = read_efficientnet_lite0(image_size or default_size)
    elif source.startswith(PREFIX):
        weights = read_torchvision_weights(source, arch, image_size, default_size)
    else:
        try:
            file = Path(source).expanduser()
        except RuntimeError as error:
            raise HptError(f"{source} cannot be read ({one_line(error)})", setting="weights") from error
        weights = read_weights(file, arch, image_size, features, default_size or IMAGENET_SIZE)
    if features and weights.architecture.features != features:
        problem = f"{weights.architecture.name} gives no features but its own"
        raise HptError(problem, "leave it out", setting="features")
    if small_stem and not weights.architecture.small_stem:
        raise HptError(f"{source} has no stem for small images", "leave it out", setting="small_stem")
    return weights
