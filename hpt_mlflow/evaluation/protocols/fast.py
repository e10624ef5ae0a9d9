"""The fast protocol: a regularised linear probe on features that are computed once."""

from __future__ import annotations

from torch import nn

from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.evaluation.protocols.base import OnStep, Outcome, Protocol
from hpt_mlflow.evaluation.scores import primary_score
from hpt_mlflow.evaluation.supervised import CurvePoint
from hpt_mlflow.evaluation.task import Task


class Fast(Protocol):
    """Logistic regression on the features of centre crops; its regularisation is chosen on validation."""

    def learn(self, backbone: nn.Module, task: Task, seed: int, steps: int | None, on_step: OnStep | None) -> Outcome:
        """See `Protocol.learn`; nothing is random, and there are no steps."""
        features, labels = task.frozen_features(backbone), task.part_labels
        probe = fit_probe(
            features.train,
            labels.train,
            features.validation,
            labels.validation,
            classes=len(task.classes),
            device=task.reader.device,
        )
        curve = [
            CurvePoint(
                iteration,
                primary_score(labels.validation, head.probabilities(features.validation)),
                primary_score(labels.test, head.probabilities(features.test)),
            )
            for iteration, head in probe.trace
        ]
        last = curve[-1].step
        return Outcome(
            backbone,
            probe.head,
            features,
            task,
            validation_score=probe.validation_score,
            curve=curve,
            step=last,
            hyperparameters={"regularisation": probe.regularisation},
            warning="" if probe.converged else f"the probe was still getting better after {last} iterations",
        )
