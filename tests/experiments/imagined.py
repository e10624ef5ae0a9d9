"""Results of studies that nobody has run, and what the studies make of them."""

from __future__ import annotations

from hpt_mlflow.experiments import load_study
from hpt_mlflow.experiments.page import study_markdown, study_page
from hpt_mlflow.experiments.results import Results

FOUR = ("Base", "Target", "HPT", "HPT-BN")
SEVEN = ("B", "T", "S", "B+T", "B+S", "S+T", "B+S+T")
ALL_FIVE = "crop,color,gray,blur,flip"


def imagined(study, figures, untrained=None, metric="accuracy", seconds=None) -> Results:
    """Results whose figures are given by method, or by method and condition: a list of one figure, or curve, a seed.

    None stands for a seed that is missing.
    """
    found = {}
    for key, seeds in figures.items():
        method, condition = key if isinstance(key, tuple) else (key, "")
        for seed, value in enumerate(seeds):
            if value is not None:
                found[method, condition, seed] = value if isinstance(value, dict) else {10: value}
    return Results(study, metric, found, dict(enumerate(untrained or [])), seconds or {})


def of_each_study(seeds=3) -> dict[str, Results]:
    """Plain results of each study: each method has a mean of its own, and seeds differ by 0.02."""

    def spread(mean):
        return [mean + 0.02 * (seed - (seeds - 1) / 2) for seed in range(seeds)]

    def curves(last):
        return [{1: y - 0.3, 5: y - 0.04, 20: y} for y in spread(last)]

    labels, amounts = ("20", "100%"), ("1%", "50%", "100%")
    subsets = (ALL_FIVE, "crop,color,blur,flip", "crop", "none")
    untrained = spread(0.3)
    return {
        "separability": imagined(
            "separability",
            {"Base": [{20: y} for y in spread(0.5)]}
            | {method: curves(0.6 + 0.05 * i) for i, method in enumerate(FOUR[1:])},
            untrained,
        ),
        "semi-supervised": imagined(
            "semi-supervised",
            {(m, c): spread(0.5 + 0.05 * i + 0.1 * j) for j, c in enumerate(labels) for i, m in enumerate(FOUR)},
        ),
        "sequential": imagined(
            "sequential", {method: spread(0.5 + 0.05 * i) for i, method in enumerate(SEVEN)}, untrained
        ),
        "augmentation": imagined(
            "augmentation",
            {
                (m, c): spread(0.7 + 0.1 * i - (0.1 - 0.05 * i) * j)
                for j, c in enumerate(subsets)
                for i, m in enumerate(("Target", "HPT"))
            },
            untrained,
        ),
        "data-amount": imagined(
            "data-amount",
            {(m, c): spread(0.4 + 0.05 * i + 0.1 * j) for j, c in enumerate(amounts) for i, m in enumerate(FOUR)},
            untrained,
        ),
        "methods": imagined(
            "methods", {"Base as it is": spread(0.5), "byol": spread(0.45), "moco": spread(0.6)}, seconds={"byol": 93.2}
        ),
    }


def claims(results):
    return [str(claim) for claim in load_study(results.study).claims(results)]


def figure(results):
    return load_study(results.study).figure(results)


def page(results, origin):
    return study_page(load_study(results.study), results, origin)


def markdown(results, origin):
    return study_markdown(load_study(results.study), results, origin)
