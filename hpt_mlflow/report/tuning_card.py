"""The description of a search's run: a short Markdown card, ending in the next commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hpt_mlflow.augment.subset import AUGMENTATIONS, format_strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.tuning.effects import common_step, main_effects
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord, best_trial


@dataclass(frozen=True)
class Winner:
    """The version adapted in full with the best subset, and its comparison with the paper's subset.

    Attributes:
        registered: the version.
        baseline: the version adapted with all augmentations; None if they are the best subset.
        metric: of the results on test: accuracy or auroc.
        result, baseline_result: on test; None without labels.
        difference: of the results, the winner's minus the baseline's, on the same images.
    """

    registered: str
    baseline: str | None = None
    metric: str = "accuracy"
    result: Interval | None = None
    baseline_result: Interval | None = None
    difference: Interval | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the run of the search, with the ends of their intervals."""
        intervals = {"test": self.result, "baseline": self.baseline_result, "gain": self.difference}
        return {
            f"{group}/{self.metric}{end}": value
            for group, interval in intervals.items()
            if interval is not None
            for end, value in zip(("", "_low", "_high"), interval, strict=True)
        }


def tuning_card(
    *,
    data: str,
    seen: int,
    chain: Sequence[str],
    parent: str | None,
    objective: str,
    maximise: bool,
    planned: int,
    rungs: Sequence[int],
    pruning: str,
    dashboard: str,
    augmentations: Sequence[str] = AUGMENTATIONS,
    trials: Sequence[TrialRecord] = (),
    spent: int = 0,
    winner: Winner | None = None,
) -> str:
    """A description of a search: its settings, its progress and, at the end, its result.

    Args:
        data, seen: address of the dataset, and the number of its images that training sees.
        chain, parent: datasets in the order of pretraining, this one last, and the version that trials start from.
        objective, maximise: what the score is, in words, and whether a high one is good.
        planned, rungs: number of trials, and the steps at which they are scored; the last is their full length.
        pruning: the rule, in words; empty for none.
        dashboard: the command that opens the search in optuna-dashboard.
        augmentations: that subsets are chosen from.
        trials, spent: the trials so far, and the steps that they have trained.
    """
    *early_rungs, steps = rungs
    rule = f"{pruning}, at {', '.join(f'{rung:,}' for rung in early_rungs)} steps" if pruning and early_rungs else ""
    parts = [f"**Chain** {' > '.join(chain)}"]
    if winner is not None:
        parts.append(f"**Result** test {winner.metric}: {_result(winner)}")
    parts += [
        f"**Data** `{data}`: {seen:,} images seen, starting from {f'`{parent}`' if parent else 'random weights'}",
        f"**Search** {'largest' if maximise else 'smallest'} {objective}; {planned:,} trials of {steps:,} steps; "
        f"{rule or 'no pruning'}",
        f"**State** {_state(trials, spent, 2 ** len(augmentations) * steps)}",
    ]
    best = best_trial(trials, maximise)
    if best is not None:
        name = f"{best.name} {format_strengths(best.strengths)}".rstrip()
        score = f"{best.score:.4g} after {best.reached:,} of {steps:,} steps"
        parts.append(f"**Best** `{name}` (trial {best.number}): {score}")
    step = common_step(trials)
    if effects := main_effects(trials, step, augmentations):
        parts.append(f"**Effects** of each augmentation, on instead of off, after {step:,} steps (95%):")
        parts.append(
            "\n".join(f"- {name} {effects[name].signed()}" for name in sorted(effects, key=lambda n: -effects[n].value))
        )
    commands = [f"hpt compare {winner.baseline} {winner.registered}"] if winner and winner.baseline else []
    commands += [f"hpt promote {winner.registered}"] if winner else []
    return "\n\n".join([*parts, "**Next**", "\n".join(["```", *commands, dashboard, "```"])])


def _result(winner: Winner) -> str:
    text = _version(winner.registered, winner.result)
    if winner.baseline:
        text += f", baseline {_version(winner.baseline, winner.baseline_result)}"
    if winner.difference is not None:
        doubt = "" if winner.difference.excludes_zero else ", which may be chance"
        text += f", difference {winner.difference.signed()}{doubt}"
    return text


def _version(address: str, result: Interval | None) -> str:
    """A registered version and its test result."""
    return f"`{address}`" + (f" {result.value:.3f} [{result.low:.3f}, {result.high:.3f}]" if result else "")


def _state(trials: Sequence[TrialRecord], spent: int, all_steps: int) -> str:
    """The number of trials per state, and the steps spent so far."""
    counts = Counter(trial.state for trial in trials)
    words = [f"{counts[state]:,} {state}" for state in (COMPLETE, PRUNED, FAILED, RUNNING)]
    return f"{', '.join(words)}; {spent:,} steps, {spent / all_steps:.1%} of the {all_steps:,} of an exhaustive search"
