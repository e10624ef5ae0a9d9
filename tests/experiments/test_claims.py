from __future__ import annotations

import pytest
from imagined import ALL_FIVE, FOUR, SEVEN, claims, imagined, of_each_study

from hpt_mlflow.experiments import load_study
from hpt_mlflow.experiments.claims import HELD, NOT_SHOWN, Claim
from hpt_mlflow.experiments.figure import BASE_AS_IS

FLAT = [0.5, 0.5, 0.5]
# 20 points above FLAT: by 1 point either way, which leaves no doubt (4.302653 / sqrt(3) = 2.48), or by 10, which does.
SURE, UNSURE, BELOW = [0.69, 0.7, 0.71], [0.6, 0.7, 0.8], [0.29, 0.3, 0.31]
OUTCOMES = [
    (SURE, "+20.0 [+17.5, +22.5] points", "held"),
    (UNSURE, "+20.0 [-4.8, +44.8] points", "not shown"),
    (BELOW, "-20.0 [-22.5, -17.5] points", "the opposite"),
    ([0.7], "+20.0 (one seed) points", "not shown"),
    ([0.3], "-20.0 (one seed) points", "not shown"),
    ([None, 0.6, None], "+10.0 (one seed) points", "not shown"),
    ([0.5, 0.5, 0.5], "+0.0 [+0.0, +0.0] points", "not shown"),
    # Whatever the seeds agree on, there is no spread that says how sure it is.
    ([0.75, 0.75, 0.75], "+25.0 [+25.0, +25.0] points", "not shown"),
    # Nothing is -0.0.
    ([0.49999], "+0.0 (one seed) points", "not shown"),
    ([0.4997, 0.49999, 0.50025], "+0.0 [-0.1, +0.1] points", "not shown"),
]


def test_a_claim_has_its_estimate_seeds_and_verdict():
    first, second = load_study("semi-supervised").claims(
        imagined("semi-supervised", {("HPT", "20"): SURE, ("Target", "20"): FLAT, ("Base", "20"): [0.5, None, 0.9]})
    )
    assert first.estimate == pytest.approx((0.2, 0.2 - 0.024841, 0.2 + 0.024841), abs=1e-6)
    assert (first.seeds, first.verdict, str(first)) == (3, HELD, f"{first.text}, held.")
    assert (second.seeds, second.verdict) == (2, NOT_SHOWN)
    assert str(Claim("Nothing is claimed")) == "Nothing is claimed."


@pytest.mark.parametrize(
    ("study", "condition", "words"),
    [
        ("semi-supervised", "1000", "1000 labels"),
        ("semi-supervised", "10%", "10% of the labels"),
        ("data-amount", "30", "30 images"),
        ("data-amount", "10%", "10% of the images"),
        ("augmentation", "crop,blur", "crop,blur"),
    ],
)
def test_conditions_are_worded(study, condition, words):
    assert load_study(study).condition_text(condition) == words


# By study, the comparisons of one condition; the paper claims which is better of the first ones, not of the others.
CLAIMED = {
    "separability": [("HPT", "Target"), ("HPT", "Base")],
    "semi-supervised": [("HPT", "Target"), ("HPT", "Base"), ("HPT", "HPT-BN")],
    "sequential": [("B+S+T", other) for other in SEVEN[:-1]],
    "augmentation": [("HPT", "Target")],
    "data-amount": [("HPT", "Target"), ("HPT", "Base")],
}
BESIDE = {"separability": [("HPT-BN", "HPT")], "data-amount": [("HPT-BN", "HPT")]}
# A condition of each study, and how sentences on it begin.
WHERE = {
    "separability": ("", ""),
    "sequential": ("", ""),
    "semi-supervised": ("1000", "With 1000 labels: "),
    "augmentation": ("crop,blur", "With crop,blur: "),
    "data-amount": ("20%", "With 20% of the images: "),
}


def pairs(comparisons):
    return [(study, *pair) for study in comparisons for pair in comparisons[study]]


@pytest.mark.parametrize(("figures", "by", "verdict"), OUTCOMES)
@pytest.mark.parametrize(("study", "one", "other"), pairs(CLAIMED))
def test_a_claim_says_by_how_much_how_sure_and_whether_it_held(study, one, other, figures, by, verdict):
    condition, where = WHERE[study]
    sentences = claims(imagined(study, {(one, condition): figures, (other, condition): FLAT}))
    # Nothing is said of the methods that there are no figures of.
    sentences = [s for s in sentences if not s.startswith("HPT reaches Target's best")]
    assert sentences == [f"{where}{one} better than {other}: {by}, {verdict}."]


@pytest.mark.parametrize(("figures", "by", "verdict"), OUTCOMES)
@pytest.mark.parametrize(("study", "one", "other"), pairs(BESIDE))
def test_where_the_paper_claims_nothing_there_is_no_verdict(study, one, other, figures, by, verdict):
    condition, where = WHERE[study]
    sentences = claims(imagined(study, {(one, condition): figures, (other, condition): FLAT}))
    sentences = [s for s in sentences if not s.startswith("HPT reaches Target's best")]
    assert sentences == [f"{where}{one} minus {other}: {by}."]


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("study", CLAIMED)
def test_each_comparison_has_one_sentence(study, seeds):
    results = of_each_study(seeds)[study]
    # How sentences start, and whether they end in a verdict.
    fewer = results.conditions[1:] if study == "augmentation" else []
    expected = [(f"With {condition}: HPT loses less than Target: ", True) for condition in fewer]
    for condition in results.conditions:
        where = f"With {load_study(study).condition_text(condition)}: " if condition else ""
        expected += [(f"{where}{one} better than {other}: ", True) for one, other in CLAIMED[study]]
        beside = [(f"{where}{one} minus {other}: ", False) for one, other in BESIDE.get(study, [])]
        expected += beside if study != "separability" else []
    if study == "separability":
        untrained = [(f"{method} minus an untrained network: ", False) for method in ("HPT", "Target")]
        expected += [("HPT reaches Target's best 4.0", True), *beside, *untrained]
    if study == "sequential":
        expected += [("B+S+T minus an untrained network: ", False)]
    sentences = claims(results)
    assert len(sentences) == len(expected)
    for sentence, (start, claimed) in zip(sentences, expected, strict=True):
        assert sentence.startswith(start)
        assert "nan" not in sentence
        assert ("(one seed)" in sentence) == (seeds == 1)
        verdicts = (", held.", ", not shown.", ", the opposite.") if seeds > 1 else ", not shown."
        assert sentence.endswith(verdicts if claimed else " points.")


def test_hpt_is_compared_with_a_base_whose_statistics_stay_as_they_are():
    figures = {"HPT": [0.5, 0.52, 0.54], BASE_AS_IS: [0.6, 0.62, 0.64]}
    assert "HPT minus Base as it is: -10.0 [-10.0, -10.0] points." in claims(imagined("separability", figures))


@pytest.mark.parametrize(("figures", "by", "verdict"), OUTCOMES)
@pytest.mark.parametrize(
    ("study", "method"), [("separability", "HPT"), ("separability", "Target"), ("sequential", "B+S+T")]
)
def test_methods_are_compared_with_an_untrained_network(study, method, figures, by, verdict):
    sentences = claims(imagined(study, {method: figures}, untrained=FLAT))
    assert [s for s in sentences if "untrained" in s] == [f"{method} minus an untrained network: {by}."]


def test_without_untrained_networks_nothing_is_said_of_them():
    assert not any("untrained" in sentence for sentence in claims(imagined("separability", dict.fromkeys(FOUR, FLAT))))


def test_comparisons_are_of_the_last_step():
    curves = {"HPT": [{5: 0.1, 10: 0.6}, {10: 0.61, 5: 0.9}], "Target": [{5: 0.9, 10: 0.5}, {10: 0.5, 5: 0.2}]}
    # 0.5 points on either side of 10.5, times 12.706.
    assert claims(imagined("separability", curves))[0] == "HPT better than Target: +10.5 [+4.1, +16.9] points, held."


# How much sooner.


def sooner(fast, slow, first=None):
    """What is said of curves that have an earlier milestone, of this figure."""
    earlier = [{1: 0.0 if first is None else first} | curve for curve in fast]
    (sentence,) = [s for s in claims(imagined("separability", {"HPT": earlier, "Target": slow})) if "reaches" in s]
    return sentence


SLOW = [{10: 0.1, 100: 0.9}] * 3


@pytest.mark.parametrize(
    ("fast", "expected"),
    [
        # Log-ratios of log 10, log 10 and log 10; then of log 10, log 5, log 5; then of log 10, 0 and 0.
        ([{10: 0.9}] * 3, "HPT reaches Target's best 10.0 [10.0, 10.0] times sooner, not shown."),
        ([{10: 0.9}, {20: 0.9}, {20: 0.9}], "HPT reaches Target's best 6.3 [2.3, 17.0] times sooner, held."),
        ([{10: 0.9}, {100: 0.9}, {100: 0.9}], "HPT reaches Target's best 2.2 [0.08, 58.6] times sooner, not shown."),
        (
            [{10: 0.9}, {10: 0.9}, {10: 0.8}],
            "HPT reaches Target's best 10.0 [10.0, 10.0] times sooner in the 2 of 3 seeds in which it does at all, "
            "not shown.",
        ),
        # Sure of those seeds, but not of all.
        (
            [{10: 0.9}, {11: 0.9}, {10: 0.8}],
            "HPT reaches Target's best 9.5 [5.2, 17.5] times sooner in the 2 of 3 seeds in which it does at all, "
            "not shown.",
        ),
        (
            [{1000: 0.9}, {1100: 0.9}, {10: 0.8}],
            "HPT reaches Target's best 0.10 [0.05, 0.17] times sooner in the 2 of 3 seeds in which it does at all, "
            "not shown.",
        ),
        (
            [{10: 0.9}, {10: 0.8}, {10: 0.8}],
            "HPT reaches Target's best 10.0 times sooner in the 1 of 3 seeds in which it does at all (one seed), "
            "not shown.",
        ),
        ([{10: 0.8}] * 3, "HPT reaches Target's best sooner: in none of 3 seeds, not shown."),
    ],
)
def test_how_much_sooner_is_said_for_those_seeds_that_get_there(fast, expected):
    assert sooner(fast, SLOW) == expected


def test_one_seed_does_not_show_that_it_is_sooner():
    assert sooner([{10: 0.9}], SLOW[:1]) == "HPT reaches Target's best 10.0 times sooner (one seed), not shown."
    assert sooner([{400: 0.9}], SLOW[:1]) == "HPT reaches Target's best 0.25 times sooner (one seed), not shown."


def test_as_much_sooner_in_all_seeds_says_not_how_sure_it_is():
    # Held of 6 times, and not shown of 5 and 7.
    for times in range(2, 20):
        assert sooner([{10: 0.9}] * 3, [{10: 0.1, 10 * times: 0.9}] * 3).endswith("not shown.")


def test_what_is_reached_at_the_first_milestone_might_have_been_reached_sooner():
    """Without an interval: one of ratios that might be higher says nothing."""
    once = [{10: 0.9}, {20: 0.9}, {20: 0.9}]
    assert sooner(once, SLOW, first=0.9) == (
        "HPT reaches Target's best at least 100.0 times sooner: in 3 of 3 seeds it is there at its first milestone, "
        "not shown."
    )
    some = [{1: 0.9}, {20: 0.9}, {20: 0.8}]
    assert sooner(some, SLOW) == (
        "HPT reaches Target's best at least 22.4 times sooner in the 2 of 3 seeds in which it does at all: in 1 of 3 "
        "seeds it is there at its first milestone, not shown."
    )


@pytest.mark.parametrize(("seeds", "verdict"), [(5, NOT_SHOWN), (6, HELD)])
def test_six_seeds_that_all_agree_are_sure_without_an_interval(seeds, verdict):
    # Two-sided: 2 of 2^5 is more than 1 in 20, 2 of 2^6 is less.
    assert sooner([{1: 0.9}] + [{10: 0.9}] * (seeds - 1), SLOW[:1] * seeds).endswith(f"first milestone, {verdict}.")
    # One that is not sooner is enough.
    assert sooner([{1: 0.9}] + [{100: 0.9}] * (seeds - 1), SLOW[:1] * seeds).endswith(f"first milestone, {NOT_SHOWN}.")


def test_it_is_said_where_target_is_at_its_best_from_the_beginning():
    def said(slow):
        told = claims(imagined("separability", {"HPT": [{1: 0.0, 10: 0.9}] * 3, "Target": slow}))
        return [sentence for sentence in told if sentence.startswith("Target is")]

    assert said(SLOW) == said([{10: 0.9}] * 3) == []
    stays = [{10: 0.5, 100: 0.4}, {10: 0.5, 100: 0.5}, {10: 0.4, 100: 0.5}]
    assert said(stays) == ["Target is at its best at its first milestone in 2 of 3 seeds."]


def test_later_in_all_seeds_is_the_opposite_of_sooner():
    fast = [{10: 0.1, 1000: 0.9}, {10: 0.1, 1100: 0.9}, {10: 0.1, 1000: 0.9}]
    assert sooner(fast, SLOW) == "HPT reaches Target's best 0.10 [0.08, 0.11] times sooner, the opposite."


# Augmentation.


def test_what_is_lost_is_the_baseline_less_what_is_left_seed_by_seed():
    results = imagined(
        "augmentation", {("HPT", ALL_FIVE): [0.75, 0.5, None, 0.5], ("HPT", "crop"): [0.25, 0.75, 0.5, None]}
    )
    assert results.lost("HPT", "crop", ALL_FIVE) == {0: 0.5, 1: -0.25}
    assert results.lost("Target", "crop", ALL_FIVE) == {}


@pytest.mark.parametrize(
    ("hpt", "expected"),
    [
        # Target loses 0.3 in each seed.
        ([0.79, 0.8, 0.81], "+20.0 [+17.5, +22.5] points, held."),
        ([0.39, 0.4, 0.41], "-20.0 [-22.5, -17.5] points, the opposite."),
        ([0.7, 0.8, 0.9], "+20.0 [-4.8, +44.8] points, not shown."),
        ([0.8], "+20.0 (one seed) points, not shown."),
    ],
)
def test_the_method_that_loses_less_is_the_one_whose_drop_is_smaller(hpt, expected):
    results = imagined(
        "augmentation",
        {
            ("Target", ALL_FIVE): [0.5] * 3,
            ("HPT", ALL_FIVE): [0.9] * 3,
            ("Target", "crop"): [0.2] * 3,
            ("HPT", "crop"): hpt,
        },
    )
    sentences = claims(results)
    assert sentences[0] == f"With crop: HPT loses less than Target: {expected}"
    assert [s.partition(":")[0] for s in sentences] == ["With crop", f"With {ALL_FIVE}", "With crop"]


@pytest.mark.parametrize("missing", [("HPT", "crop"), ("Target", "crop"), ("HPT", ALL_FIVE)])
def test_nothing_is_said_of_losses_that_are_not_known(missing):
    figures = {(m, c): FLAT for c in (ALL_FIVE, "crop") for m in ("Target", "HPT") if (m, c) != missing}
    assert not any("loses" in sentence for sentence in claims(imagined("augmentation", figures)))
