"""The trainings and evaluations that studies are made of, for one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.experiments.plan import Job, job
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.options import passed_on
from hpt_mlflow.settings import EvaluateSettings, PretrainSettings, StudySettings
from hpt_mlflow.settings.common import parse_count
from hpt_mlflow.settings.pretrain import RANDOM
from hpt_mlflow.settings.study import listed
from hpt_mlflow.training.plan import PRESETS


@dataclass(frozen=True)
class Chains:
    """The trainings and evaluations of one seed.

    Attributes:
        images: of the target, that training may see.
        network: of the registered Base, if there is one.
    """

    settings: StudySettings
    seed: int
    images: int
    network: Architecture | None = None

    def base(self) -> Job | None:
        """The training on base; None for a registered Base."""
        if self.settings.base_model is not None:
            return None
        steps = self.settings.base_steps or PRESETS[self.settings.preset].pretrain.steps
        return self._from_random_weights(self.settings.base, steps, augment=self._augment)

    def on_source(self, start: Job | None, from_base: bool = True) -> Job:
        """A training on source, from the Base or from random weights."""
        settings = self.settings
        assert settings.source is not None
        steps = settings.source_steps or self.target_steps
        if not from_base:
            return self._from_random_weights(settings.source, steps, augment=self._augment)
        return self._from_model(start, settings.source, steps, augment=self._augment)

    def before_target(self) -> Job | None:
        """What HPT starts from on the target: the Base, or the model adapted from it to source."""
        return self.on_source(self.base()) if self.settings.source is not None else self.base()

    def on_target(self, method: str, **more: Any) -> Job:
        """The training on the target by one of the paper's four methods; `more` are settings of the stage."""
        if method == "Target":
            return self.target_alone(**more)
        if method == "Base":
            return self.adapted(self.base(), update="bn-stats", **more)
        return self.adapted(self.before_target(), update="bn" if method == "HPT-BN" else "all", **more)

    def target_alone(self, steps: int | None = None, **more: Any) -> Job:
        """A training on the target from random weights."""
        return self._from_random_weights(self.settings.target, steps or self.target_steps, **self._on_target() | more)

    def adapted(self, start: Job | None, steps: int | None = None, **more: Any) -> Job:
        """A training on the target from a model; from the registered Base without a start."""
        return self._from_model(start, self.settings.target, steps or self.target_steps, **self._on_target() | more)

    def evaluated(self, training: Job | None, whole_run: bool = False, **more: Any) -> Job:
        """An evaluation on the target, of the model of a training, or of a model named in `more`."""
        settings = self.settings
        own = {
            **passed_on(settings, EvaluateSettings),
            **{"data": settings.target, "seed": self.seed, "split_seed": self.seed, "classifier_name": "none"},
            "protocol": settings.protocol,
            "steps": settings.protocol_steps,
            # Untrained features are the same for all methods of a seed.
            "untrained": training is not None and training.stage == "pretrain",
        }
        return job("evaluate", training, whole_run, **own | more)

    def base_as_is(self) -> Job:
        """An evaluation of the Base on the target, which it has not seen."""
        return self.evaluated(self.base(), untrained=False, model=self.settings.base_model)

    def count_of(self, amount: str) -> int:
        """How many images of the target a number or a percentage is."""
        count = parse_count("amounts", amount)
        return count if isinstance(count, int) else round(count * self.images)

    def cut_to(self, amount: str) -> dict[str, int]:
        """Those sizes that the user set and this many images cannot fill, cut to fit; the stage cuts the preset's."""
        nproc = self.settings.nproc
        # Equal parts for all processes, of two images or more.
        batch = max(2, self.count_of(amount) // nproc) * nproc
        most = {"batch_size": batch, "bn_splits": max(1, batch // (2 * nproc)) * nproc}
        given = {name: getattr(self.settings, name) for name in most}
        return {name: most[name] for name, size in given.items() if size is not None and size > most[name]}

    @property
    def target_steps(self) -> int:
        """Steps on the target."""
        return self.settings.steps or PRESETS[self.settings.preset].adapt.steps

    @property
    def _augment(self) -> str | None:
        return self.settings.augment if set(listed(self.settings.augment)) != set(AUGMENTATIONS) else None

    def _on_target(self) -> dict[str, Any]:
        return {"augment": self._augment, "images": self.settings.images}

    def _from_random_weights(self, data: str, steps: int, **more: Any) -> Job:
        network = self.network.as_settings() if self.network else {}
        names = ("arch", "image_size", "small_stem", "features")
        own = {name: getattr(self.settings, name) or network.get(name) for name in names}
        return job("pretrain", **self._shared(data, steps) | {"weights": RANDOM} | own | more)

    def _from_model(self, start: Job | None, data: str, steps: int, **more: Any) -> Job:
        settings = self.settings
        own = {
            "parent": None if start else settings.base_model,
            "image_size": settings.image_size,
            "features": settings.features,
            # What a study compares is the end of each training.
            "judge": "none",
            "learning_rate": settings.adapt_learning_rate or settings.learning_rate,
        }
        return job("adapt", start, **self._shared(data, steps) | own | more)

    def _shared(self, data: str, steps: int) -> dict[str, Any]:
        own = {"data": data, "steps": steps, "milestones": "100%", "seed": self.seed, "split_seed": self.seed}
        return passed_on(self.settings, PretrainSettings) | own
