from __future__ import annotations

from dataclasses import replace

import pytest

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.interval import Interval
from hpt_mlflow.report.tuning_card import Winner, tuning_card
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord

SEARCH = {
    "data": "folder:/data/birds",
    "seen": 1200,
    "chain": ("imagenet", "birds"),
    "parent": "models:/hpt/1",
    "objective": "20-NN accuracy on validation",
    "maximise": True,
    "planned": 32,
    "rungs": (4, 16, 64),
    "pruning": "the worse half is pruned",
    "dashboard": "optuna-dashboard sqlite:///study.db",
}
TRIALS = [
    TrialRecord(0, AUGMENTATIONS, PRUNED, {4: 0.3, 16: 0.4}),
    TrialRecord(1, ("crop", "flip"), COMPLETE, {4: 0.2, 16: 0.5, 64: 0.6}),
    TrialRecord(2, ("gray",), FAILED, {4: 0.1}),
    TrialRecord(3, ("blur",), PRUNED, {4: 0.1}),
]
WINNER = Winner(
    registered="models:/hpt/9",
    baseline="models:/hpt/8",
    metric="auroc",
    result=Interval(0.9, 0.88, 0.92),
    baseline_result=Interval(0.85, 0.83, 0.87),
    difference=Interval(0.05, 0.02, 0.08),
)


def card(**changes):
    return tuning_card(**SEARCH | changes)


def part(text, title):
    """The paragraph of a title, without it; None where it is not there."""
    found = [line for line in text.split("\n\n") if line.startswith(f"**{title}**")]
    return found[0].removeprefix(f"**{title}** ") if found else None


def commands(text):
    before, *lines, after = text.split("\n\n")[-1].splitlines()
    assert before == after == "```"
    assert "**Next**" in text
    return lines


def test_it_says_what_is_tuned_and_how():
    text = card()
    assert part(text, "Chain") == "imagenet > birds"
    assert part(text, "Data") == "`folder:/data/birds`: 1,200 images seen, starting from `models:/hpt/1`"
    how = "largest 20-NN accuracy on validation; 32 trials of 64 steps; the worse half is pruned, at 4, 16 steps"
    assert part(text, "Search") == how
    assert part(card(parent=None), "Data").endswith("starting from random weights")
    assert part(card(maximise=False), "Search").startswith("smallest")


@pytest.mark.parametrize("without", [{"pruning": ""}, {"rungs": (64,)}])
def test_it_says_that_nothing_is_pruned(without):
    assert part(card(**without), "Search").endswith("64 steps; no pruning")


def test_before_the_first_trial_there_is_nothing_to_tell():
    text = card()
    spent = "0 steps, 0.0% of the 2,048 of an exhaustive search"
    assert part(text, "State") == f"0 complete, 0 pruned, 0 failed, 0 running; {spent}"
    assert [part(text, title) for title in ("Best", "Effects", "Result")] == [None] * 3
    assert commands(text) == ["optuna-dashboard sqlite:///study.db"]


def test_it_counts_trials_and_their_steps():
    trials = [*TRIALS, TrialRecord(4, ("crop",), RUNNING, {4: 0.1})]
    state = part(card(trials=trials, spent=92), "State")
    assert state == "1 complete, 2 pruned, 1 failed, 1 running; 92 steps, 4.5% of the 2,048 of an exhaustive search"
    fewer = card(trials=trials, spent=92, augmentations=("crop", "flip"))
    assert "92 steps, 35.9% of the 256 of" in part(fewer, "State")


def test_the_best_is_named_with_its_strengths_and_steps():
    other = TrialRecord(5, AUGMENTATIONS, PRUNED, {4: 0.7, 16: 0.7, 64: 0.7}, Strengths(hue=0.1))
    named = "`crop,color,gray,blur,flip hue=0.1` (trial 5): 0.7 after 64 of 64 steps"
    assert part(card(trials=[*TRIALS, other]), "Best") == named


def test_the_best_is_the_smallest_where_that_is_wanted():
    trials = [TrialRecord(0, ("crop",), COMPLETE, {64: 0.5}), TrialRecord(1, ("flip",), COMPLETE, {64: 0.4})]
    assert part(card(trials=trials, maximise=False), "Best").startswith("`flip` (trial 1): 0.4")


def test_effects_have_a_line_each_the_largest_first():
    scores = {(): 0.5, ("crop",): 0.623, ("flip",): 0.49, ("crop", "flip"): 0.613}
    trials = [TrialRecord(i, subset, COMPLETE, {1024: score}) for i, (subset, score) in enumerate(scores.items())]
    text = card(trials=trials)
    assert "after 1,024 steps" in part(text, "Effects")
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines == ["- crop +0.123 [+0.123, +0.123]", "- flip -0.010 [-0.010, -0.010]"]
    assert "- crop +0.123\n" in card(trials=trials[:2])


def test_after_adapting_it_gives_the_result_and_the_next_commands():
    text = card(trials=TRIALS, winner=WINNER)
    winner, baseline = "`models:/hpt/9` 0.900 [0.880, 0.920]", "`models:/hpt/8` 0.850 [0.830, 0.870]"
    result = f"test auroc: {winner}, baseline {baseline}, difference +0.050 [+0.020, +0.080]"
    assert part(text, "Result") == result
    assert commands(text) == [
        "hpt compare models:/hpt/8 models:/hpt/9",
        "hpt promote models:/hpt/9",
        "optuna-dashboard sqlite:///study.db",
    ]


def test_a_difference_that_may_be_chance_is_called_so():
    text = card(winner=replace(WINNER, difference=Interval(0.05, -0.02, 0.12)))
    assert part(text, "Result").endswith("difference +0.050 [-0.020, +0.120], which may be chance")


def test_a_winner_without_results_or_baseline_is_still_named():
    text = card(winner=Winner("models:/hpt/9"))
    assert part(text, "Result") == "test accuracy: `models:/hpt/9`"
    assert commands(text) == ["hpt promote models:/hpt/9", "optuna-dashboard sqlite:///study.db"]
    both = card(winner=Winner("models:/hpt/9", "models:/hpt/8"))
    assert part(both, "Result") == "test accuracy: `models:/hpt/9`, baseline `models:/hpt/8`"


def test_the_results_are_metrics_with_their_intervals():
    assert Winner("models:/hpt/9").metrics == {}
    assert Winner("models:/hpt/9", result=Interval(0.9, 0.8, 1.0)).metrics == {
        **{"test/accuracy": 0.9, "test/accuracy_low": 0.8, "test/accuracy_high": 1.0}
    }
    assert set(WINNER.metrics) == {
        f"{group}/auroc{end}" for group in ("test", "baseline", "gain") for end in ("", "_low", "_high")
    }


def test_the_last_command_opens_the_dashboard():
    assert commands(card(dashboard="optuna-dashboard 'my study.log'"))[-1] == "optuna-dashboard 'my study.log'"
