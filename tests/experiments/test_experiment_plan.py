from __future__ import annotations

import pytest

from hpt_mlflow.experiments.plan import Point, StudyPlan, job


def test_two_jobs_of_the_same_kind_settings_and_start_are_one():
    one, same = (job("pretrain", **said) for said in ({"data": "a", "seed": 0}, {"seed": 0, "data": "a"}))
    assert one == same
    assert hash(one) == hash(same)
    assert job("adapt", one, data="b", seed=0) == job("adapt", same, data="b", seed=0)


def test_another_stage_setting_start_or_kind_of_start_is_another_job():
    start = job("pretrain", data="a", seed=0)
    ones = [
        job("adapt", start, data="b", seed=0),
        job("adapt", data="b", seed=0),
        job("evaluate", start, data="b", seed=0),
        job("evaluate", start, whole_run=True, data="b", seed=0),
        job("adapt", start, data="c", seed=0),
        job("adapt", start, data="b", seed=1),
        job("adapt", job("pretrain", data="a", seed=1), data="b", seed=0),
    ]
    assert len(set(ones)) == len(ones)


def test_settings_of_none_are_left_to_the_stage_and_those_of_false_and_0_are_not():
    assert job("pretrain", data="a", seed=0, arch=None, strict=False).settings == {
        "data": "a",
        "seed": 0,
        "strict": False,
    }


def test_evaluations_have_no_steps_of_self_supervised_training():
    start = job("pretrain", data="a", seed=0, steps=7)
    assert start.steps == 7
    assert job("adapt", start, data="a", seed=0).steps == 0
    assert job("evaluate", start, data="a", seed=0, steps=9).steps == 0


def test_a_plan_has_each_job_once_and_behind_the_one_that_it_starts_from():
    base = job("pretrain", data="a", seed=0)
    adapted = [job("adapt", base, data="b", seed=0, update=update) for update in ("all", "bn")]
    looked_at = [job("evaluate", training, data="b", seed=0) for training in (*adapted, base, adapted[0])]
    points = tuple(Point("m", str(i), 0, evaluation) for i, evaluation in enumerate(looked_at))
    assert StudyPlan(points).jobs == [
        base,
        adapted[0],
        looked_at[0],
        adapted[1],
        looked_at[1],
        looked_at[2],
    ]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("builtin:noto", "noto"),
        ("/data/clip art", "clip art"),
        ("folder:/data/clipart/", "clipart"),
        ("torchvision:MNIST", "MNIST"),
        ("plain", "plain"),
        ("/", "/"),
        ("folder:/data/clipart/?size=64&name=a/b:c", "clipart"),
        ("paper:resisc?split=1", "resisc"),
    ],
)
def test_a_label_shows_the_end_of_the_address(address, shown):
    assert job("pretrain", data=address, seed=3).label == f"pretrain {shown}"


def test_labels_say_what_differs_but_for_the_seed_that_the_name_says():
    base = job("pretrain", data="builtin:noto", seed=3, steps=4)
    adapted = job("adapt", base, data="/x/digits", seed=3, update="bn", augment="crop", images="10%")
    assert adapted.label == "adapt digits < noto, update=bn, augment=crop, images=10%"
    looked_at = job("evaluate", adapted, data="/x/digits", seed=3, labels="20", steps=4)
    assert looked_at.label == f"evaluate {adapted.label}, labels=20"
    assert base.name == "pretrain noto, 4 steps, seed 3"
    assert job("evaluate", base, data="t", seed=3).name == "evaluate pretrain noto, 4 steps, seed 3"
    assert looked_at.name == f"{looked_at.label}, seed 3"
    assert job("adapt", base, data="/x/digits?a=b", seed=3).label == "adapt digits < noto"
    assert job("adapt", data="t", seed=1, parent="models:/hpt/1").name == "adapt t < models:/hpt/1, seed 1"


def test_labels_name_all_that_is_learned_from_newest_first():
    photos = job("pretrain", data="builtin:photos", seed=0, steps=4)
    aerial = job("adapt", photos, data="/x/aerial?side=64", seed=0, update="all")
    assert job("adapt", aerial, data="xrays", seed=0).label == "adapt xrays < aerial < photos"
    registered = job("adapt", data="/x/aerial", seed=0, parent="models:/hpt/1")
    last = job("adapt", registered, data="xrays", seed=0, update="bn")
    assert last.label == "adapt xrays < aerial < models:/hpt/1, update=bn"
    assert job("evaluate", last, data="xrays", seed=0).label == f"evaluate {last.label}"
