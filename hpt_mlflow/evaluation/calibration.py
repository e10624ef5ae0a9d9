"""Whether probabilities are calibrated: confidence against accuracy (Guo et al., ICML 2017)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpt_mlflow.evaluation.scores import is_multilabel

BINS = 15


class Reliability(NamedTuple):
    """Decisions in bins of equal width by their confidence; bin m of M holds those in ((m - 1) / M, m / M].

    Attributes:
        counts: decisions in each bin, int64 (M,).
        confidence: their mean confidence, float64 (M,), NaN in an empty bin.
        accuracy: the share of them that is right, float64 (M,), NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean gap between confidence and accuracy of the decisions (equation 3), in [0, 1]; NaN without any."""
        if not self.counts.sum():
            return float("nan")
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(np.average(gaps, weights=self.counts))


def reliability(truth: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Confidence and accuracy of decisions, by bins of confidence.

    A decision is the most probable class of an image; of multi-label truth, whether an image has a label (probability
    at least 0.5), with the probability of that decision as confidence, all labels pooled.

    Args:
        truth: int64 (N,) classes, or uint8 (N, C) labels.
        probabilities: float32 (N, C).
        bins: M.
    """
    if is_multilabel(truth):
        confidence = np.maximum(probabilities, 1 - probabilities).ravel()
        right = ((probabilities >= 0.5) == (truth == 1)).ravel()
    else:
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == truth
    confidence = confidence.astype(np.float64)
    chosen = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(chosen, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    return Reliability(
        counts=counts,
        confidence=np.bincount(chosen, weights=confidence, minlength=bins) / filled,
        accuracy=np.bincount(chosen, weights=right, minlength=bins) / filled,
    )
