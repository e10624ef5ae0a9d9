"""The description of an evaluation's run: a short Markdown card, ending in the next commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split

# Columns of the table: the metric of each row.
COLUMNS = {
    "accuracy": {"model": "test/accuracy", "untrained": "random/accuracy", "chance": "chance/accuracy"},
    "balanced": {"model": "test/balanced_accuracy", "untrained": "random/balanced_accuracy", "chance": ""},
    "20-NN": {"model": "knn/test_accuracy", "untrained": "random/knn_accuracy", "chance": ""},
    "mean AUROC": {"model": "test/auroc", "untrained": "random/auroc", "chance": "chance/auroc"},
}
ROWS = {"model": "this model", "untrained": "untrained network", "chance": "the same answer for all"}


def evaluation_card(
    model: str,
    classifier: str,
    chain: Sequence[str],
    dataset: Dataset,
    split: Split,
    method: str,
    result: Mapping[str, float],
    note: str = "",
) -> str:
    """The result of an evaluation.

    Args:
        model, classifier: addresses of the evaluated model, and of the classifier.
        split: its train part holds the images whose labels were learned from.
        method: the protocol, in words.
        result: metrics by name.
        note: a warning, or nothing.
    """
    name, title = ("auroc", "mean AUROC") if dataset.multilabel else ("accuracy", "accuracy")
    value, low, high = (result[f"test/{name}{end}"] for end in ("", "_low", "_high"))
    lines = [
        f"**Model** `{model}` ({' > '.join(chain)})",
        "",
        f"**Result** {title} {value:.3f} (95%: {low:.3f} to {high:.3f})",
        "",
        f"**Data** `{dataset.uri}`: {len(dataset.classes)} {'labels' if dataset.multilabel else 'classes'}; learned "
        f"from {len(split.train):,} images, chosen on {len(split.validation):,}, tested once on {len(split.test):,}",
        "",
        f"**Method** {method}",
        "",
        *_table(result),
    ]
    if f"gain/{name}" in result:
        gain, low, high = (result[f"gain/{name}{end}"] for end in ("", "_low", "_high"))
        caveat = "" if low > 0 or high < 0 else ", so it may be chance"
        lines += ["", f"Gain over the untrained network: {gain:+.3f} (95%: {low:+.3f} to {high:+.3f}{caveat})."]
    if note:
        lines += ["", f"**Note** {note}."]
    lines += [
        "",
        "**Next**",
        "",
        "```",
        f"hpt predict {classifier} FOLDER",
        f"mlflow models serve -m {classifier} --env-manager local",
        f"hpt promote {model}",
        "```",
    ]
    return "\n".join(lines)


def _table(result: Mapping[str, float]) -> list[str]:
    """Scores of the model and its baselines; columns without any score are left out."""
    columns = {title: by_row for title, by_row in COLUMNS.items() if by_row["model"] in result}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for row, title in ROWS.items():
        cells = [f"{result[by_row[row]]:.3f}" if by_row[row] in result else "" for by_row in columns.values()]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines
