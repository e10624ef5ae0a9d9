"""What the paper claims, and whether it held here: one sentence each."""

from __future__ import annotations

from collections.abc import Callable

from hpt_mlflow.experiments.results import Estimate, Results, Sooner, difference, first_best, times_sooner

HELD, NOT_SHOWN, OPPOSITE = "held", "not shown", "the opposite"
UNTRAINED = "an untrained network"
# The Base without the refresh of its batch-norm statistics on the target that the paper gives it.
BASE_AS_IS = "Base as it is"


def claims(results: Results) -> list[str]:
    """A sentence for each claim of the paper that the experiment is about, and for each comparison behind it."""
    return [sentence for sentence in CLAIMS[results.study](results) if sentence]


def verdict(found: Estimate) -> str:
    """Whether a difference that should be above 0 is."""
    if found.is_sure:
        return HELD if found.mean > 0 else OPPOSITE
    return NOT_SHOWN


def verdict_in(sentence: str) -> str:
    """The verdict that a sentence of `claims` ends with; something else where it has none."""
    return sentence.rstrip(".").rpartition(", ")[2]


def words_for(study: str, condition: str) -> str:
    """A condition in a sentence: `with 10% of the images`."""
    of_all = condition.endswith("%")
    return {
        "semi-supervised": f"with {condition} of the labels" if of_all else f"with {condition} labels",
        "data-amount": f"with {condition} of the images" if of_all else f"with {condition} images",
        "augmentation": f"with {condition}",
    }[study]


def _better(results: Results, one: str, other: str, condition: str = "") -> str:
    """One sentence on a claim that a method beats another one."""
    found = difference(results.last(one, condition), results.last(other, condition))
    if found is None:
        return ""
    return f"{_where(results, condition)}{one} better than {other}: {_points(found)} points, {verdict(found)}."


def _beside(results: Results, one: str, other: str, condition: str = "") -> str:
    """One sentence on two methods of which the paper does not claim which is better."""
    others = results.untrained if other == UNTRAINED else results.last(other, condition)
    found = difference(results.last(one, condition), others)
    return f"{_where(results, condition)}{one} less {other}: {_points(found)} points." if found else ""


def _where(results: Results, condition: str) -> str:
    return f"{words_for(results.study, condition)}: ".capitalize() if condition else ""


def _points(found: Estimate) -> str:
    mean, low, high = (f"{round(100 * value, 1) + 0.0:+.1f}" for value in (found.mean, found.low, found.high))
    return f"{mean} (one seed)" if found.count < 2 else f"{mean} [{low}, {high}]"


def _times(found: Estimate) -> str:
    interval = "" if found.count < 2 else f" [{_short(found.low)}, {_short(found.high)}]"
    return f"{_short(found.mean)}{interval} times"


def _short(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def _separability(results: Results) -> list[str]:
    """HPT is as good as Base and Target or better, and gets there up to 80 times sooner."""
    others = [_better(results, "HPT", other) for other in ("Target", "Base")]
    pairs = (("HPT-BN", "HPT"), ("HPT", BASE_AS_IS), ("HPT", UNTRAINED), ("Target", UNTRAINED))
    beside = [_beside(results, *pair) for pair in pairs]
    return [*others, *_sooner(results), *beside]


def _sooner(results: Results) -> list[str]:
    """How much sooner HPT is as good as Target at its best; and whether Target has learned anything."""
    fast, slow = results.by_seed("HPT"), results.by_seed("Target")
    found, seeds = times_sooner(fast, slow), len(slow)
    idle = sum(first_best(curve) == min(curve) < max(curve) for curve in slow.values())
    unlearned = f"Target is at its best at its first milestone in {idle} of {seeds} seeds." if idle else ""
    return [_times_sooner(found, seeds), unlearned] if slow and fast else []


def _times_sooner(found: Sooner, seeds: int) -> str:
    reached = len(found.ratios)
    if not reached:
        return f"HPT reaches Target's best sooner: in none of {seeds} seeds, {NOT_SHOWN}."
    mean, everywhere = found.mean, reached == seeds
    where = "" if everywhere else f" in the {reached} of {seeds} seeds in which it does at all"
    if found.at_first:
        held = HELD if everywhere and found.all_sooner else NOT_SHOWN
        at_first = f"in {found.at_first} of {seeds} seeds it is there at its first milestone"
        return f"HPT reaches Target's best at least {_short(mean.mean)} times sooner{where}: {at_first}, {held}."
    held = verdict(found.logarithm) if everywhere else NOT_SHOWN
    one = " (one seed)" if mean.count < 2 else ""
    return f"HPT reaches Target's best {_times(mean)} sooner{where}{one}, {held}."


def _semi_supervised(results: Results) -> list[str]:
    """With few labels HPT is best, and HPT-BN never beats it."""
    return [
        _better(results, "HPT", other, condition)
        for condition in results.conditions
        for other in ("Target", "Base", "HPT-BN")
    ]


def _sequential(results: Results) -> list[str]:
    """B+S+T is the best sequence."""
    others = [method for method in results.methods if method != "B+S+T"]
    return [_better(results, "B+S+T", other) for other in others] + [_beside(results, "B+S+T", UNTRAINED)]


def _augmentation(results: Results) -> list[str]:
    """HPT loses less than Target where augmentations are taken away, and stays above it."""
    baseline, *fewer = results.conditions
    sentences = []
    for condition in fewer:
        losses = {method: losses_by_seed(results, method, condition, baseline) for method in ("HPT", "Target")}
        less = difference(losses["Target"], losses["HPT"])
        if less:
            where = _where(results, condition)
            sentences.append(f"{where}HPT loses less than Target: {_points(less)} points, {verdict(less)}.")
    return sentences + [_better(results, "HPT", "Target", condition) for condition in results.conditions]


def losses_by_seed(results: Results, method: str, condition: str, baseline: str) -> dict[int, float]:
    """By how much a method is better under its baseline condition than under another one."""
    best, here = results.last(method, baseline), results.last(method, condition)
    return {seed: best[seed] - here[seed] for seed in here if seed in best}


def _data_amount(results: Results) -> list[str]:
    """HPT is best where there are few images, or below about 5,000 HPT-BN."""
    sentences = []
    for condition in results.conditions:
        sentences += [_better(results, "HPT", other, condition) for other in ("Target", "Base")]
        sentences.append(_beside(results, "HPT-BN", "HPT", condition))
    return sentences


CLAIMS: dict[str, Callable[[Results], list[str]]] = {
    "separability": _separability,
    "semi-supervised": _semi_supervised,
    "sequential": _sequential,
    "augmentation": _augmentation,
    "data-amount": _data_amount,
}
