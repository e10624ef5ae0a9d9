"""How well a linear classifier predicts the labels."""

from __future__ import annotations

import numpy as np

from hpt_mlflow.evaluation.objectives.base import Examples, PredictionJudge
from hpt_mlflow.evaluation.probe import fit_probe

# A search judges often. So linear classifiers are fitted with two values of C, instead of the six of the `fast`
# protocol, and stopped early, which regularises too.
REGULARISATIONS = (1e-2, 1e-1)
ITERATIONS = 20


class ProbeJudge(PredictionJudge):
    """The score of the best linear classifier by validation."""

    def answer(self, known: Examples, queries: Examples, classes: int) -> np.ndarray:
        """See `PredictionJudge.answer`."""
        examples = (known.features, known.labels, queries.features, queries.labels)
        probe = fit_probe(*examples, classes, self.reader.device, REGULARISATIONS, ITERATIONS)
        return probe.head.probabilities(queries.features)
