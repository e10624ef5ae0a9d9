"""How good probabilities are: accuracy for classes, AUROC for multi-label truth."""

from __future__ import annotations

import numpy as np

# sklearn takes a second to import, and a training needs none of it: functions import it.


def is_multilabel(truth: np.ndarray) -> bool:
    """Whether truth is uint8 (N, C), one column per label, rather than int64 (N,), one class per image."""
    return truth.ndim == 2


def primary_name(truth: np.ndarray) -> str:
    """The score that models are chosen by: `accuracy` (top-1), or `auroc` (the mean over the labels)."""
    return "auroc" if is_multilabel(truth) else "accuracy"


def primary_score(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The score that `primary_name` names, in [0, 1].

    Args:
        truth: int64 (N,) classes, or uint8 (N, C) labels.
        probabilities: float32 (N, C).

    Returns:
        NaN if every label is one that all images have, or none.
    """
    if is_multilabel(truth):
        aurocs = label_aurocs(truth, probabilities)
        return float(aurocs[~np.isnan(aurocs)].mean()) if not np.isnan(aurocs).all() else float("nan")
    return float((probabilities.argmax(axis=1) == truth).mean())


def balanced_accuracy(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean recall over the classes."""
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(truth, probabilities.argmax(axis=1)))


def label_aurocs(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each label, float64 (C,); NaN for a label that all images have, or none."""
    from sklearn.metrics import roc_auc_score

    both = (truth.min(axis=0) == 0) & (truth.max(axis=0) == 1)
    return np.array(
        [
            roc_auc_score(truth[:, label], probabilities[:, label]) if both[label] else np.nan
            for label in range(truth.shape[1])
        ]
    )
