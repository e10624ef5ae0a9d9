"""The description of an evaluation's run: a short Markdown card, ending in the next commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split

METHODS = {
    "fast": "a linear probe on features that are computed once, its regularisation chosen on validation",
    "paper": "a linear probe by SGD on random crops and flips, as the paper trains it",
    "finetune": "all weights fine-tuned from these labels, schedule and learning rate chosen on validation",
}
# Columns of the table: of which metric each row takes its figure.
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
    protocol: str,
    result: Mapping[str, float],
    note: str = "",
) -> str:
    """What an evaluation found.

    Args:
        model, classifier: addresses of what was evaluated, and of what came of it.
        split: its train part is what labels were learned from.
        result: metrics by name.
        note: what else the reader should know.
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
        f"**Method** {METHODS[protocol]}",
        "",
        *_table(result),
    ]
    if f"gain/{name}" in result:
        gain, low, high = (result[f"gain/{name}{end}"] for end in ("", "_low", "_high"))
        sure = "" if low > 0 or high < 0 else ", so it may be chance"
        lines += ["", f"Gain over the untrained network: {gain:+.3f} (95%: {low:+.3f} to {high:+.3f}{sure})."]
    if note:
        lines += ["", f"**Note** {note}."]
    lines += [
        "",
        "**Go on**",
        "",
        "```",
        f"hpt predict {classifier} FOLDER",
        f"mlflow models serve -m {classifier} --env-manager local",
        f"hpt promote {model}",
        "```",
    ]
    return "\n".join(lines)


def _table(result: Mapping[str, float]) -> list[str]:
    """Figures of the model and of what it is compared with; columns without any figure are left out."""
    columns = {title: by_row for title, by_row in COLUMNS.items() if by_row["model"] in result}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for row, title in ROWS.items():
        cells = [f"{result[by_row[row]]:.3f}" if by_row[row] in result else "" for by_row in columns.values()]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines
