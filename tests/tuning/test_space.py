from __future__ import annotations

import dataclasses
import warnings
from itertools import combinations

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, format_strengths, parse_strengths, with_jitter
from hpt_mlflow.tuning.space import PAPER_SUBSETS, STRENGTHS, Space

EVERY = {subset for size in range(6) for subset in combinations(AUGMENTATIONS, size)}
SOME_CHOICES = [("crop",), ("flip",), ("crop", "flip"), ("color", "gray"), ("crop", "blur", "flip"), AUGMENTATIONS]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def new_study(sampler=None):
    return optuna.create_study(sampler=sampler or RandomSampler(seed=0))


def asked(study, parameters):
    study.enqueue_trial(parameters)
    return study.ask()


def test_the_papers_subsets_are_the_five_of_section_4_4():
    everything, no_gray, no_color, crop_blur, crop = map(set, PAPER_SUBSETS)
    assert everything == set(AUGMENTATIONS)
    assert everything - no_gray == {"gray"}
    assert everything - no_color == {"color"}
    assert crop_blur == {"crop", "blur"}
    assert crop == {"crop"}


def test_all_32_subsets_come_once():
    subsets = Space(AUGMENTATIONS).subsets(seed=0)
    assert len(subsets) == 32
    assert set(subsets) == EVERY


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_papers_five_come_first(seed):
    assert Space(AUGMENTATIONS).subsets(seed)[:5] == list(PAPER_SUBSETS)


@pytest.mark.parametrize("allowed", SOME_CHOICES)
@pytest.mark.parametrize("seed", [0, 7])
def test_of_fewer_augmentations_all_subsets_come_once_in_the_order_of_application(allowed, seed):
    subsets = Space(allowed).subsets(seed)
    assert len(subsets) == 2 ** len(allowed)
    assert set(subsets) == {subset for subset in EVERY if set(subset) <= set(allowed)}


@pytest.mark.parametrize(
    ("allowed", "first"),
    [
        (("crop", "flip"), [("crop", "flip"), ("crop",)]),
        (("crop",), [("crop",)]),
        (("flip",), [("flip",), ()]),
        (("blur",), [("blur",), ()]),
        (("color", "gray"), [("color", "gray"), ("color",), ("gray",), ()]),
        (("crop", "blur", "flip"), [("crop", "blur", "flip"), ("crop", "blur"), ("crop",)]),
    ],
)
def test_the_papers_subsets_are_cut_to_what_is_allowed_each_once(allowed, first):
    space = Space(allowed)
    assert space.paper_subsets == first
    assert space.subsets(seed=3)[: len(first)] == first


def test_the_order_of_the_others_depends_on_the_seed_alone():
    orders = [Space(AUGMENTATIONS).subsets(seed) for seed in range(5)]
    assert orders == [Space(AUGMENTATIONS, True, parse_strengths("hue=0.1")).subsets(seed) for seed in range(5)]
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize(("count", "made"), [(None, 32), (1, 1), (7, 7), (31, 31), (32, 32), (33, 32), (1000, 32)])
def test_without_strengths_the_queue_is_the_grid(count, made):
    space = Space(AUGMENTATIONS)
    queue = space.queue(count, seed=4)
    assert [space.read(parameters) for parameters in queue] == [
        (subset, Strengths()) for subset in space.subsets(seed=4)[:made]
    ]
    assert all(set(parameters) == set(AUGMENTATIONS) for parameters in queue)


@pytest.mark.parametrize(
    ("count", "fixed", "free"), [(None, 5, 59), (1, 1, 0), (4, 4, 0), (5, 5, 0), (6, 5, 1), (33, 5, 28), (100, 5, 95)]
)
def test_with_strengths_the_papers_subsets_come_first_and_the_sampler_chooses_the_rest(count, fixed, free):
    space = Space(AUGMENTATIONS, with_strengths=True)
    queue = space.queue(count, seed=4)
    assert [space.read(parameters)[0] for parameters in queue[:fixed]] == list(PAPER_SUBSETS[:fixed])
    assert queue[fixed:] == [{}] * free


@pytest.mark.parametrize(("allowed", "count"), [(("crop",), 4), (("crop", "flip"), 8)])
def test_with_strengths_there_are_twice_as_many_trials_as_subsets(allowed, count):
    assert len(Space(allowed, with_strengths=True).queue(None, seed=0)) == count


@pytest.mark.parametrize("with_strengths", [False, True])
def test_a_queue_begins_as_a_shorter_one(with_strengths):
    space = Space(AUGMENTATIONS, with_strengths)
    assert all(space.queue(count, 1) == space.queue(32, 1)[:count] for count in range(1, 32))


@pytest.mark.parametrize("with_strengths", [False, True])
@pytest.mark.parametrize("subset", sorted(EVERY))
def test_fixed_parameters_come_back_from_a_trial_as_the_subset_with_the_papers_strengths(subset, with_strengths):
    space = Space(AUGMENTATIONS, with_strengths)
    parameters = space.parameters(subset)
    trial = asked(new_study(), parameters)
    assert space.suggest(trial) == (subset, Strengths())
    assert trial.params == parameters
    assert space.read(trial.params) == (subset, Strengths())


def test_parameters_are_the_switches_and_the_strengths_of_what_is_on():
    space = Space(("crop", "blur", "flip"), with_strengths=True)
    assert space.parameters(("crop", "blur")) == {
        **{"crop": True, "blur": True, "flip": False},
        **{"crop_scale": 0.2, "blur_sigma": 2.0, "blur_p": 0.5},
    }
    assert Space(("crop", "flip")).parameters(("flip",)) == {"crop": False, "flip": True}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_a_sampler_draws_is_within_its_range_and_comes_back(sampler):
    space = Space(AUGMENTATIONS, with_strengths=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        tpe = TPESampler(seed=0, multivariate=True, group=True, n_startup_trials=5)
    study = new_study(RandomSampler(seed=0) if sampler == "random" else tpe)
    seen = set()
    for _ in range(40):
        trial = study.ask()
        subset, strengths = space.suggest(trial)
        assert space.read(trial.params) == (subset, strengths)
        assert subset == tuple(name for name in AUGMENTATIONS if trial.params[name])
        ranges = {key: limits for name in subset for key, limits in STRENGTHS[name].items()}
        assert set(trial.params) == set(AUGMENTATIONS) | set(ranges)
        assert all(low <= trial.params[key] <= high for key, (low, high) in ranges.items())
        assert all(type(trial.params[key]) is float for key in ranges)
        # Which also checks that each is allowed.
        assert parse_strengths(format_strengths(strengths)) == strengths
        study.tell(trial, len(subset))
        seen.add(subset)
    assert len(seen) > 10


def test_strengths_go_where_they_belong():
    space = Space(AUGMENTATIONS, with_strengths=True)
    on = dict.fromkeys(AUGMENTATIONS, True)
    chosen = {"crop_scale": 0.3, "jitter": 0.7, "color_p": 0.6, "gray_p": 0.4, "blur_sigma": 3.0, "blur_p": 0.9}
    _, strengths = space.read(on | chosen | {"flip_p": 0.2})
    assert dataclasses.asdict(strengths) == {
        **{"crop_scale": (0.3, 1.0), "brightness": 0.7, "contrast": 0.7, "saturation": 0.7, "hue": 0.5},
        **{"color_p": 0.6, "gray_p": 0.4, "blur_sigma": (0.1, 3.0), "blur_p": 0.9, "flip_p": 0.2},
    }


def test_strengths_of_what_is_off_stay_as_they_were():
    own = parse_strengths("gray_p=0.1,blur_sigma=0.2:1")
    space = Space(AUGMENTATIONS, True, own)
    subset, strengths = space.suggest(asked(new_study(), space.parameters(("flip",)) | {"flip_p": 0.3}))
    assert subset == ("flip",)
    assert strengths == dataclasses.replace(own, flip_p=0.3)


def test_strengths_that_are_not_searched_are_those_given():
    own = parse_strengths("gray_p=0.01,crop_scale=0.5:0.9")
    space = Space(("crop", "gray"), strengths=own)
    trial = asked(new_study(), space.parameters(("crop", "gray")))
    assert space.suggest(trial) == (("crop", "gray"), own)
    assert trial.params == {"crop": True, "gray": True}


OWN = [
    "crop_scale=0.9:1,jitter=1,color_p=0,gray_p=1,blur_sigma=0.1:9,blur_p=0,flip_p=1",
    "crop_scale=0.001:1,jitter=0,color_p=1,gray_p=0,blur_sigma=0.001:0.1,blur_p=1,flip_p=0",
    "crop_scale=0.01:0.02,blur_sigma=5:6",
    "crop_scale=0.3:0.4,blur_sigma=1:2",
    "jitter=0.05,flip_p=0.05",
]


@pytest.mark.parametrize("own", OWN)
def test_fixed_defaults_lie_within_what_is_searched(own):
    space = Space(AUGMENTATIONS, True, parse_strengths(own))
    trial = asked(new_study(), space.parameters(AUGMENTATIONS))
    # Optuna would warn of a fixed parameter out of its range.
    space.suggest(trial)
    for key, distribution in trial.distributions.items():
        assert distribution._contains(distribution.to_internal_repr(trial.params[key]))


@pytest.mark.parametrize("own", OWN)
def test_what_is_searched_keeps_the_ends_of_ranges_in_order(own):
    space = Space(AUGMENTATIONS, True, parse_strengths(own))
    study = new_study()
    for parameters in [space.parameters(AUGMENTATIONS), *[dict.fromkeys(AUGMENTATIONS, True)] * 20]:
        _, strengths = space.suggest(asked(study, parameters))
        assert parse_strengths(format_strengths(strengths)) == strengths
        assert strengths.crop_scale[1] == space.strengths.crop_scale[1]
        assert strengths.blur_sigma[0] == space.strengths.blur_sigma[0]


def test_jitter_beyond_the_colour_circle_keeps_its_default():
    own = with_jitter(Strengths(), 0.8)
    space = Space(AUGMENTATIONS, True, own)
    assert space.suggest(asked(new_study(), space.parameters(AUGMENTATIONS))) == (AUGMENTATIONS, own)


@pytest.mark.parametrize(
    ("with_strengths", "own", "smallest"),
    [
        (False, "", (0.2, 1.0)),
        (True, "", (0.05, 1.0)),
        (True, "crop_scale=0.01:0.5", (0.01, 0.5)),
        (False, "crop_scale=0.3:0.5", (0.3, 0.5)),
        (True, "crop_scale=0.3:0.5", (0.05, 0.5)),
    ],
)
def test_the_smallest_crops_are_those_that_may_be_drawn(with_strengths, own, smallest):
    assert Space(AUGMENTATIONS, with_strengths, parse_strengths(own)).smallest_crop_scale == smallest
