"""How well nearest neighbours predict the labels."""

from __future__ import annotations

import numpy as np

from hpt_mlflow.evaluation.neighbours import nearest_neighbour_votes
from hpt_mlflow.evaluation.objectives.base import Examples, PredictionJudge


class NeighbourJudge(PredictionJudge):
    """The score of the weighted vote of 20 neighbours."""

    def answer(self, known: Examples, queries: Examples, classes: int) -> np.ndarray:
        """See `PredictionJudge.answer`."""
        votes = nearest_neighbour_votes(known.features, known.labels, queries.features)
        return np.pad(votes, ((0, 0), (0, classes - votes.shape[1])))
