"""The five experiments of the HPT paper as plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.experiments.claims import BASE_AS_IS
from hpt_mlflow.experiments.plan import ExperimentPlan, Job, Point, job
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.settings.study import listed
from hpt_mlflow.training.plan import PRESETS
from hpt_mlflow.tuning.space import PAPER_SUBSETS

METHODS = ("Base", "Target", "HPT", "HPT-BN")
SEQUENCES = ("B", "T", "S", "B+T", "B+S", "S+T", "B+S+T")
# What each of a study's trainings takes from the study.
SHARED = (
    *("root", "method", "preset", "batch_size", "learning_rate", "weight_decay", "key_momentum", "temperature"),
    *("queue_size", "bn_splits", "strengths", "precision", "compile", "workers", "cache_gib", "device", "nproc"),
    *("restarts", "checkpoint_every", "model_name", "strict"),
)


@dataclass(frozen=True)
class Chains:
    """The trainings and evaluations of one seed.

    Attributes:
        images: of the target, that training may see.
        network: of the registered Base, where there is one.
    """

    settings: StudySettings
    seed: int
    images: int
    network: Architecture | None = None

    def base(self) -> Job | None:
        """The training on base; None for a registered Base."""
        if self.settings.base_model is not None:
            return None
        steps = self.settings.base_steps or PRESETS[self.settings.preset].pretrain_steps
        return self._from_random_weights(self.settings.base, steps, augment=self._augment)

    def on_source(self, start: Job | None, from_base: bool = True) -> Job:
        """A training on source, from the Base or from random weights."""
        settings = self.settings
        steps = settings.source_steps or self._target_steps
        assert settings.source is not None
        if not from_base:
            return self._from_random_weights(settings.source, steps, augment=self._augment)
        return self._from_model(start, settings.source, steps, augment=self._augment)

    def before_target(self) -> Job | None:
        """What HPT starts from on the target: the Base, or what was made of it on source."""
        return self.on_source(self.base()) if self.settings.source is not None else self.base()

    def on_target(self, method: str, **more: Any) -> Job:
        """The training on the target by one of the four methods."""
        if method == "Target":
            return self.target_alone(**more)
        if method == "Base":
            return self.adapted(self.base(), update="bn-stats", **more)
        return self.adapted(self.before_target(), update="bn" if method == "HPT-BN" else "all", **more)

    def target_alone(self, **more: Any) -> Job:
        """A training on the target from random weights."""
        return self._from_random_weights(self.settings.target, self._target_steps, **self._with_defaults(more))

    def adapted(self, start: Job | None, **more: Any) -> Job:
        """A training on the target from a model; from the registered Base where there is no start."""
        return self._from_model(start, self.settings.target, self._target_steps, **self._with_defaults(more))

    def evaluated(self, training: Job | None, whole_run: bool = False, **more: Any) -> Job:
        """An evaluation on the target, of what a training has made; or of a model that is named."""
        settings = self.settings
        shared = {name: getattr(settings, name) for name in ("root", "device", "cache_gib")}
        # Untrained features are the same for all methods of a seed.
        own = {
            "untrained": training is not None and training.stage == "pretrain",
            "classifier_name": "none",
            "seed": self.seed,
        }
        how = {
            "protocol": settings.protocol,
            "steps": settings.protocol_steps if settings.protocol == "paper" else None,
        }
        return job(
            "evaluate",
            training,
            whole_run,
            **shared | own | {"data": settings.target, "split_seed": self.seed} | how | more,
        )

    def evaluated_as_it_is(self) -> Job:
        """An evaluation of the Base on the target, of which it has seen nothing."""
        return self.evaluated(self.base(), untrained=False, model=self.settings.base_model)

    def count_of(self, amount: str) -> int:
        """How many images of the target a number or a percentage of them is."""
        count = parse_count("amounts", amount)
        return count if isinstance(count, int) else round(count * self.images)

    def cut_to(self, amount: str) -> dict[str, int]:
        """The named sizes that so few images cannot fill, cut to what they can; the preset's are cut by the stage."""
        batch = self.count_of(amount)
        # Equal parts for all processes, of two images or more.
        nproc = self.settings.nproc
        batch = max(2, batch // nproc) * nproc
        named = {"batch_size": batch, "bn_splits": max(1, batch // (2 * nproc)) * nproc}
        said = {name: (getattr(self.settings, name), most) for name, most in named.items()}
        return {name: min(value, most) for name, (value, most) in said.items() if value is not None and value > most}

    @property
    def _target_steps(self) -> int:
        return self.settings.steps or PRESETS[self.settings.preset].adapt_steps

    @property
    def _augment(self) -> str | None:
        return self.settings.augment if set(listed(self.settings.augment)) != set(AUGMENTATIONS) else None

    def _with_defaults(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"augment": self._augment, "images": self.settings.images} | more

    def _from_random_weights(self, data: str, steps: int, **more: Any) -> Job:
        network = self.network.as_settings() if self.network else {}
        own = {name: getattr(self.settings, name) or network.get(name) for name in ("arch", "image_size", "small_stem")}
        return job("pretrain", **self._shared(data, steps) | own | more)

    def _from_model(self, start: Job | None, data: str, steps: int, **more: Any) -> Job:
        settings = self.settings
        own = {
            "parent": None if start else settings.base_model,
            "image_size": settings.image_size,
            "learning_rate": settings.adapt_learning_rate or settings.learning_rate,
        }
        return job("adapt", start, **self._shared(data, steps) | own | more)

    def _shared(self, data: str, steps: int) -> dict[str, Any]:
        shared = {name: getattr(self.settings, name) for name in SHARED}
        seeds = {"seed": self.seed, "split_seed": self.seed}
        return shared | seeds | {"data": data, "steps": steps, "milestones": "100%"}


def make_experiment(settings: StudySettings, images: int, network: Architecture | None = None) -> ExperimentPlan:
    """All that a study runs, for all its seeds.

    Args:
        images: of the target, that training may see.
        network: of the registered Base, where there is one; what starts from random weights has it too.
    """
    points: list[Point] = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        chains = Chains(settings, seed, images, network)
        points += [Point(method, condition, seed, done) for method, condition, done in STUDIES[settings.study](chains)]
    return ExperimentPlan(settings.study, tuple(points))


Found = Iterator[tuple[str, str, Job]]


def _separability(chains: Chains) -> Found:
    """Accuracy against pretraining steps."""
    # A registered Base takes images of its own size: at another one, more than the method would differ.
    if chains.settings.base_model is None or chains.settings.image_size is None:
        yield BASE_AS_IS, "", chains.evaluated_as_it_is()
    for method in METHODS:
        milestones = "100%" if method == "Base" else chains.settings.milestones
        yield method, "", chains.evaluated(chains.on_target(method, milestones=milestones), whole_run=True)


def _semi_supervised(chains: Chains) -> Found:
    """Fine-tuning on few labels."""
    for labels in listed(chains.settings.labels):
        for method in METHODS:
            how: dict[str, Any] = {"protocol": "finetune", "labels": labels, "steps": chains.settings.protocol_steps}
            yield method, labels, chains.evaluated(chains.on_target(method), **how, untrained=False)


def _sequential(chains: Chains) -> Found:
    """Which stages in a row. What has not learned on the target gets its batch-norm statistics there."""
    base, source = chains.base(), chains.on_source(None, from_base=False)
    both = chains.on_source(base)
    models = {
        "B": chains.adapted(base, update="bn-stats"),
        "T": chains.target_alone(),
        "S": chains.adapted(source, update="bn-stats"),
        "B+T": chains.adapted(base),
        "B+S": chains.adapted(both, update="bn-stats"),
        "S+T": chains.adapted(source),
        "B+S+T": chains.adapted(both),
    }
    for sequence in SEQUENCES:
        yield sequence, "", chains.evaluated(models[sequence])


def _augmentation(chains: Chains) -> Found:
    """Fewer augmentations on the target: the paper's subsets, or all."""
    every = [subset for size in range(len(AUGMENTATIONS), -1, -1) for subset in combinations(AUGMENTATIONS, size)]
    for subset in every if chains.settings.every_subset else PAPER_SUBSETS:
        for method in ("Target", "HPT"):
            named = ",".join(subset) or "none"
            # An untrained network is the same under all conditions: one evaluation is enough.
            first = method == "Target" and subset == AUGMENTATIONS
            # All of them is what other studies take, without saying so.
            augment = None if subset == AUGMENTATIONS else named
            yield method, named, chains.evaluated(chains.on_target(method, augment=augment), untrained=first)


def _data_amount(chains: Chains) -> Found:
    """Fewer images of the target, the fewest first."""
    *_, most = amounts = sorted(listed(chains.settings.amounts), key=chains.count_of)
    for amount in amounts:
        # What is all of them is what other studies take.
        images = None if amount == "100%" else amount
        for method in METHODS:
            training = chains.on_target(method, images=images, **chains.cut_to(amount))
            # Normalised by as many images as there are, the untrained network is that of other studies.
            yield method, amount, chains.evaluated(training, untrained=method == "Target" and amount == most)


STUDIES: dict[str, Callable[[Chains], Found]] = {
    "separability": _separability,
    "semi-supervised": _semi_supervised,
    "sequential": _sequential,
    "augmentation": _augmentation,
    "data-amount": _data_amount,
}
