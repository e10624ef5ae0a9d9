"""The description of a search's run: a short Markdown card, ending in the next commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, format_strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord, best_trial


def tuning_card(
    *,
    data: str,
    seen: int,
    chain: Sequence[str],
    parent: str | None,
    objective: str,
    maximise: bool,
    planned: int,
    steps: int,
    rungs: Sequence[int],
    pruning: str,
    dashboard: str,
    trials: Sequence[TrialRecord] = (),
    spent: int = 0,
    subsets: int = 2 ** len(AUGMENTATIONS),
    effects: Mapping[str, Interval] | None = None,
    effects_step: int = 0,
    registered: str | None = None,
    result: Interval | None = None,
    baseline: str | None = None,
    baseline_result: Interval | None = None,
    difference: Interval | None = None,
    metric: str = "accuracy",
) -> str:
    """What a search is, how far it is and, once there is one, what came of it.

    Args:
        data, seen: address of the dataset, and how many of its images are seen.
        chain, parent: datasets in the order of pretraining, this one last, and the version it is learned onto.
        objective, maximise: what the score is, in words, and whether a high one is good.
        planned, steps, rungs: trials, full length of each, and steps at which a trial may be pruned.
        pruning: by what rule, in words; empty for none.
        dashboard: the command that opens the study in optuna-dashboard.
        trials, spent: what is known so far, and steps that all trials have trained or are about to.
        subsets: how many an exhaustive search would train to full length.
        effects, effects_step: main effects by augmentation, and the step at which scores were compared.
        registered, result: version that was adapted with the best subset, and its test figure.
        baseline, baseline_result: the same of the version that was adapted with all augmentations.
        difference, metric: first figure minus second, on the same test images, and what the figure is.
    """
    wanted = f"{'largest' if maximise else 'smallest'} {objective}; {planned:,} trials of {steps:,} steps"
    rule = f"{pruning}, at {', '.join(f'{rung:,}' for rung in rungs)} steps" if pruning and rungs else "no pruning"
    parts = [f"**Chain** {' > '.join(chain)}"]
    if registered is not None:
        found = _version(registered, result) + (f", baseline {_version(baseline, baseline_result)}" if baseline else "")
        if difference is not None:
            doubt = "" if difference.excludes_zero else ", which may be chance"
            found += f", difference {difference.signed()}{doubt}"
        parts.append(f"**Result** test {metric}: {found}")
    parts += [
        f"**Data** `{data}`: {seen:,} images seen, starting from {f'`{parent}`' if parent else 'random weights'}",
        f"**Search** {wanted}; {rule}",
        f"**State** {_state(trials, spent, subsets * steps)}",
    ]
    best = best_trial(trials, maximise)
    if best is not None:
        name = f"{best.name} {format_strengths(best.strengths)}".rstrip()
        found = f"`{name}` (trial {best.number}): {best.score:.4g} after {best.reached:,} of {steps:,} steps"
        parts.append(f"**Best** {found}; {_against_baseline(best, trials, maximise)}")
    if effects:
        parts.append(f"**Effects** of each augmentation, on instead of off, after {effects_step:,} steps (95%):")
        parts.append(
            "\n".join(f"- {name} {effects[name].signed()}" for name in sorted(effects, key=lambda n: -effects[n].value))
        )
    commands = [f"hpt compare {baseline} {registered}"] if registered and baseline else []
    commands += [f"hpt promote {registered}"] if registered else []
    commands.append(dashboard)
    return "\n\n".join([*parts, "**Go on**", "\n".join(["```", *commands, "```"])])


def _version(address: str, figure: Interval | None) -> str:
    """A registered version and its test figure."""
    return f"`{address}`" + (f" {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if figure else "")


def _state(trials: Sequence[TrialRecord], spent: int, all_steps: int) -> str:
    """How many trials are in which state, and what they took so far."""
    counts = Counter(trial.state for trial in trials)
    words = [f"{counts[state]:,} {state}" for state in (COMPLETE, PRUNED, FAILED, RUNNING)]
    return f"{', '.join(words)}; {spent:,} steps, {spent / all_steps:.1%} of the {all_steps:,} of an exhaustive search"


def _against_baseline(best: TrialRecord, trials: Sequence[TrialRecord], maximise: bool) -> str:
    """The best trial beside the paper's subset and strengths, at the deepest rung that both have a score at."""
    name = f"the paper's `{','.join(AUGMENTATIONS)}`"
    if (best.subset, best.strengths) == (AUGMENTATIONS, Strengths()):
        return f"this is {name}"
    papers = [t for t in trials if (t.subset, t.strengths) == (AUGMENTATIONS, Strengths())]
    shared = max(((step, -t.number, t) for t in papers for step in t.scores if step in best.scores), default=None)
    if shared is None:
        return f"{name} has no score to compare with"
    step, _, other = shared
    gain = best.scores[step] - other.scores[step]
    verdict = "better" if gain and (gain > 0) == maximise else "not better"
    return f"after {step:,} steps {best.scores[step]:.4g} against {other.scores[step]:.4g} of {name}: {verdict}"
