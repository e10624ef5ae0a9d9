"""The description of a run: a short Markdown card, ending in the next commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.split import Split
from hpt_mlflow.methods import load_method
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.foreign import ForeignWeights
from hpt_mlflow.pixels import RGB, PixelFormat
from hpt_mlflow.report.commands import stage_command
from hpt_mlflow.training.plan import Plan


def training_card(
    chain: Sequence[str],
    dataset: Dataset,
    split: Split,
    plan: Plan,
    architecture: Architecture,
    parent: str | None,
    parent_method: str,
    result: Mapping[str, float] | None = None,
    registered: str | None = None,
    verdict: str = "",
    pixels: PixelFormat = RGB,
    delta: bool = False,
) -> str:
    """What a training stage is and, once there is one, its result and whether it helped."""
    method = load_method(plan.method)
    differs = parent_method not in ("", plan.method)
    source = f"`{parent}`" + (f" (trained by {parent_method}; only its backbone is used)" if differs else "")
    how = "random weights, all of them learn" if parent is None else f"starts from {source}, {plan.what_learns.words}"
    lines = [f"**Chain** {' > '.join(chain)}", ""]
    if result is not None and registered is not None:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
        lines += [f"**Did it help?** {verdict}", ""] if verdict else []
        lines += [f"**Result** `{registered}`: {figures}", ""]
    lines += [
        f"**Data** `{dataset.uri}`: {len(split.seen):,} images seen, {len(split.test):,} kept for test",
        "",
        *([] if pixels.is_rgb else [f"**Pixels** {pixels}", ""]),
        f"**Method** {method.title}, {architecture}: {how}. {plan.steps:,} steps of {plan.batch_size}, "
        f"learning rate {plan.learning_rate:g}, views by {', '.join(plan.subset) or 'nothing'}, {plan.precision}.",
        "",
    ]
    if delta:
        needs = f"only the difference from `{parent}`, which must not be deleted"
        lines += [f"**Stored** is {needs}; `hpt make-whole` copies a version with all weights.", ""]
    if plan.what_learns.learns:
        lines += [
            f"Chance level: {method.chance(plan.options, plan.batch_size)}. "
            "An embedding_std near 0 is a collapse; 0.09 is healthy.",
            "",
        ]
    if registered is not None:
        lines += _next_commands(registered)
    return "\n".join(lines)


def weights_card(weights: ForeignWeights, registered: str | None) -> str:
    """What weights are that were registered as they came and, once there is one, their version."""
    parts = Counter(weights.left_out.values())
    left_out = ", ".join(f"{count} of {part}" for part, count in parts.items()) or "nothing"
    lines = [
        f"**Chain** {' > '.join(weights.chain)}",
        "",
        f"**Weights** `{weights.file}` (sha256 `{weights.sha256}`), read as {weights.format}, registered as they are.",
        "",
        f"**Backbone** {weights.architecture}: {len(weights.state)} tensors. Left out: {left_out}.",
        "",
        f"**Images** are normalised with mean {weights.mean} and standard deviation {weights.std}.",
    ]
    if registered is not None:
        lines += ["", *_next_commands(registered)]
    return "\n".join(lines)


def _next_commands(registered: str) -> list[str]:
    """The next commands, from a registered version."""
    return [
        "**Next**",
        "",
        "```",
        stage_command("adapt", parent=registered, data="FOLDER"),
        stage_command("evaluate", model=registered, data="LABELLED_FOLDER"),
        "```",
    ]
