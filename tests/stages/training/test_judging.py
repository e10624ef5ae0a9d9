"""A stage that starts from a model is judged at its milestones, and never ends below its parent."""

import math
import shutil
from typing import NamedTuple

import mlflow
import pytest
from colours import write_colours
from mlflow.tracking import MlflowClient
from mlflow_runs import store_for_copies
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import AdaptSettings
from hpt_mlflow.stages.training.judging import JudgedMilestones, Judging, worse_than_parent
from hpt_mlflow.tracking.addresses import model_id_of

# In the folder of the store.
TINY = {"data": "digits", "image_size": 16, "batch_size": 32, "precision": "float32", "compile": "off"}
# Too small a step to change any feature.
STILL = TINY | {"steps": 2, "milestones": "1", "learning_rate": 1e-30, "alias": "target"}
STILL_COLOURS = {name: value for name, value in STILL.items() if name not in ("data", "image_size")} | {
    "on_no_gain": "register"
}


@pytest.fixture(scope="module")
def trained(empty_database, tmp_path_factory):
    """The database of a store with a model of one step, and its address."""
    folder = tmp_path_factory.mktemp("parent")
    with store_for_copies(folder, empty_database) as database:
        write_digits(folder / "digits")
        result = hpt_mlflow.pretrain(**TINY, arch="shufflenet_v2_x0_5", steps=1, milestones="100%")
    return database, result.model_uri


@pytest.fixture
def parent(trained, store, tmp_path):
    """A model to start from, in a store of its own, and the digits."""
    database, model = trained
    shutil.copy(database, tmp_path / "mlflow.db")
    write_digits(tmp_path / "digits")
    return model


@pytest.mark.parametrize(
    ("scores", "best", "after_parent"),
    [
        ({0: 0.5, 10: 0.6, 20: 0.7}, 20, 20),
        ({0: 0.5, 10: 0.7, 20: 0.6}, 10, 10),
        ({0: 0.5, 10: 0.7, 20: 0.67}, 20, 20),
        ({0: 0.5, 10: 0.5, 20: 0.5}, 0, 20),
        # Better than the parent, but not by more than the noise.
        ({0: 0.5, 10: 0.54, 20: 0.52}, 0, 20),
        ({0: 0.5, 10: 0.53, 20: 0.55}, 20, 20),
        ({0: 0.5, 10: 0.4, 20: 0.3}, 0, 10),
        # Within the noise of the best, but not better than the parent.
        ({0: 0.5, 10: 0.55, 20: 0.52}, 10, 20),
        ({0: 0.5, 10: math.nan, 20: 0.6}, 20, 20),
        ({0: 0.5, 10: math.nan}, 0, 10),
    ],
)
def test_the_best_is_the_last_of_those_that_are_as_good_as_the_highest(scores, best, after_parent):
    milestones = JudgedMilestones("knn", scores, noise=0.04)
    assert (milestones.best, milestones.best_after_parent) == (best, after_parent)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            {0: 0.5, 10: 0.6, 20: 0.7},
            "Better than its parent from step 10 on, by 20-NN on validation; step 20 is taken",
        ),
        ({0: 0.5, 10: 0.4, 20: 0.7}, "Better than its parent from step 20 on"),
        ({0: 0.5, 10: 0.6, 20: 0.4}, "Better than its parent for a while"),
        ({0: 0.5, 10: 0.4}, "Not better than its parent, by 20-NN on validation: 0.500, and 0.400 at step 10."),
    ],
)
def test_it_says_whether_the_training_helped(scores, words):
    assert JudgedMilestones("knn", scores).summary.startswith(words)


def test_it_says_where_a_gain_may_be_chance():
    assert JudgedMilestones("knn", {0: 0.5, 10: 0.53}, noise=0.04).summary == (
        "Not better than its parent by more than chance, by 20-NN on validation: 0.500, and 0.530 at step 10."
    )


CHECKED = {0: 0.40, 10: 0.50, 20: 0.45}


def test_what_the_check_refuses_is_not_taken():
    milestones = JudgedMilestones("consistency", CHECKED | {30: 0.60}, refused=frozenset([10, 30]))
    assert (milestones.best, milestones.best_after_parent) == (20, 20)
    assert milestones.summary == (
        "Better than its parent for a while, by neighbours that an image and its view share; step 20 is taken: 0.450, "
        "the parent 0.400. By accuracy of predicting rotations it is worse at step 10, 30."
    )


def test_the_parent_stays_where_the_check_refuses_all():
    milestones = JudgedMilestones("consistency", CHECKED, refused=frozenset([10, 20]))
    # Who wants a milestone all the same gets the best.
    assert (milestones.best, milestones.best_after_parent) == (0, 10)
    assert milestones.summary == (
        "Not better than its parent in every way, by neighbours that an image and its view share: 0.400, and 0.450 at "
        "step 20. By accuracy of predicting rotations it is worse at step 10, 20."
    )


def test_what_is_not_better_anyway_is_not_said_to_be_refused():
    milestones = JudgedMilestones("consistency", {0: 0.5, 10: 0.4}, refused=frozenset([10]))
    assert milestones.summary == (
        "Not better than its parent, by neighbours that an image and its view share: 0.500, and 0.400 at step 10."
    )


@pytest.mark.parametrize(
    ("scores", "telling", "worse"),
    [
        ({0: 0.50, 10: 0.50, 20: 0.49, 30: 0.51}, 0.3, {20}),
        ({0: 0.50, 10: math.nan}, 0.3, {10}),
        # Images that have no side that is up: turns are guessed, before and after.
        ({0: 0.27, 10: 0.24}, 0.3, set()),
        ({0: math.nan, 10: 0.24}, 0.3, set()),
        ({}, 0.3, set()),
    ],
)
def test_a_milestone_is_worse_than_a_parent_that_has_something_to_lose(scores, telling, worse):
    assert worse_than_parent(scores, telling) == worse


class Fixed(NamedTuple):
    """A judge whose scores are known."""

    noise: float
    chance: float = 0.25


def test_scores_are_read_from_the_metrics_of_the_run():
    history = [(20, {"judge/knn": 0.7, "train/loss": 1.0}), (0, {"judge/knn": 0.5}), (5, {"train/loss": 2.0}), (20, {})]
    judging = Judging("knn", Fixed(noise=0.1))
    assert judging.judged(history) == JudgedMilestones("knn", {0: 0.5, 20: 0.7}, 0.1)
    assert judging.judged(history, lost=[20]).scores == {0: 0.5}


def test_the_check_is_read_from_the_metrics_of_the_run():
    history = [
        (step, {"judge/consistency": agreed, "judge/rotation": turned})
        for step, agreed, turned in ((0, 0.4, 0.5), (10, 0.5, 0.49), (20, 0.45, 0.5))
    ]
    assert Judging("consistency", Fixed(0), Fixed(0.1)).judged(history).best == 20
    # With so few examples, 0.5 may be chance.
    assert Judging("consistency", Fixed(0), Fixed(0.13)).judged(history).best == 10


def test_without_a_gain_nothing_is_registered_and_the_parent_is_the_result(parent, capsys):
    result = hpt_mlflow.adapt(parent=parent, **STILL)
    assert (result.model_uri, result.chain, result.metrics["judge/best_step"]) == (parent, ("digits",), 0)
    assert len(MlflowClient().search_model_versions("name='hpt'")) == 1
    assert f"nothing is registered; {parent} is the result" in capsys.readouterr().err
    # What follows the stage finds its result under the alias.
    assert f"models:/hpt/{MlflowClient().get_model_version_by_alias('hpt', 'target').version}" == parent
    run = mlflow.get_run(result.run_id)
    assert (run.info.status, run.data.tags["hpt.model"]) == ("FINISHED", parent)
    assert "**Did it help?** Not better than its parent" in run.data.tags["mlflow.note.content"]
    scores = {metric.step: metric.value for metric in MlflowClient().get_metric_history(result.run_id, "judge/knn")}
    assert sorted(scores) == [0, 1, 2]
    assert len(set(scores.values())) == 1


def test_an_alias_of_another_model_cannot_name_the_parent(parent, capsys):
    hpt_mlflow.adapt(parent=parent, model_name="other", **STILL)
    assert f"the alias target is not set, because {parent} is not a version of other" in capsys.readouterr().err


def test_the_parent_is_judged_with_the_normalisation_that_it_has_learned(parent, tmp_path):
    """Step 0 is the parent exactly as it is, also where the training normalises images anew."""
    colours = str(write_colours(tmp_path / "colours", count=90))
    kept, refreshed = (
        hpt_mlflow.adapt(parent=parent, data=colours, image_size=16, statistics=statistics, **STILL_COLOURS)
        for statistics in ("keep", "refresh")
    )
    cards = [hpt_mlflow.load_model(model).card for model in (parent, kept.model_uri, refreshed.model_uri)]
    assert cards[0].mean == cards[1].mean != cards[2].mean
    scores = [
        {metric.step: metric.value for metric in MlflowClient().get_metric_history(result.run_id, "judge/knn")}
        for result in (kept, refreshed)
    ]
    assert scores[0][0] == scores[0][2] == scores[1][0] != scores[1][2]


def test_a_run_that_kept_its_parent_is_reused_inside_another_run(parent):
    with mlflow.start_run():
        first, again = (hpt_mlflow.adapt(parent=parent, **STILL) for _ in range(2))
    assert (again.run_id, again.model_uri, again.chain) == (first.run_id, parent, ("digits",))


def test_the_best_milestone_is_registered_without_a_gain_if_the_user_wants_that(parent):
    result = hpt_mlflow.adapt(parent=parent, on_no_gain="register", **STILL)
    version = MlflowClient().get_model_version_by_alias("hpt", "target")
    assert result.model_uri == f"models:/hpt/{version.version}" != parent
    assert mlflow.get_logged_model(model_id_of(result.model_uri)).name == "step-2"


def test_the_best_milestone_is_registered(parent):
    result = hpt_mlflow.adapt(parent=parent, preset="quick", steps=30, milestones="1,50%", **TINY)
    history = MlflowClient().get_metric_history(result.run_id, "judge/knn")
    scores = {metric.step: metric.value for metric in history}
    assert sorted(scores) == [0, 1, 15, 30]
    best = max(scores, key=scores.get)
    # One step has given the parent no statistics to speak of.
    assert scores[best] > scores[0]
    chosen = result.metrics["judge/best_step"]
    # The noise of the 100 examples that so short a training allows.
    assert scores[chosen] >= scores[best] - 0.5 / math.sqrt(99)
    assert chosen >= best
    assert mlflow.get_logged_model(model_id_of(result.model_uri)).name == f"step-{chosen:.0f}"


def test_without_labels_the_neighbours_of_views_judge(parent, folder):
    for file in list(folder.rglob("*.png")):
        file.rename(folder / file.name)
    settings = STILL | {"data": str(folder), "batch_size": 8}
    result = hpt_mlflow.adapt(parent=parent, **settings)
    assert 0 <= result.metrics["judge/consistency"] <= 1
    # Which is checked by another judge, that needs no labels either.
    assert 0 <= result.metrics["judge/rotation"] <= 1
    assert mlflow.get_run(result.run_id).data.tags["hpt.warning"].startswith("40 images are few to adapt to")
    assert 0 <= hpt_mlflow.adapt(parent=parent, judge="rotation", **settings).metrics["judge/rotation"] <= 1
    with pytest.raises(HptError, match="^judge: knn needs labels"):
        hpt_mlflow.adapt(parent=parent, judge="knn", **settings)


def test_images_that_allow_no_judge_are_named_and_the_last_step_is_the_result(parent, folder, caplog):
    flat = folder.parent / "flat"
    flat.mkdir()
    for file in list(folder.rglob("*.png"))[:3]:
        file.rename(flat / file.name)
    result = hpt_mlflow.adapt(parent=parent, **STILL | {"data": str(flat), "batch_size": 2})
    assert result.model_uri == "models:/hpt/2"
    assert "nothing judges whether this helps, and its last step is taken: consistency needs 2 or more" in caplog.text


def test_without_a_judge_the_last_step_is_the_result(parent):
    result = hpt_mlflow.adapt(parent=parent, judge="none", **STILL)
    assert result.model_uri == "models:/hpt/2"
    assert not any(name.startswith("judge/") for name in result.metrics)


def test_statistics_alone_cannot_be_kept():
    with pytest.raises(HptError, match="^statistics: update bn-stats learns nothing but the statistics; use refresh"):
        AdaptSettings(update="bn-stats", statistics="keep")


def test_mlflow_knows_the_parent_and_ranks_milestones_by_dataset(parent):
    result = hpt_mlflow.adapt(**TINY, parent=parent, steps=2, milestones="1")
    run = mlflow.get_run(result.run_id)
    assert [found.model_id for found in run.inputs.model_inputs] == [model_id_of(parent)]
    dataset = run.inputs.dataset_inputs[0].dataset
    ranked = mlflow.search_logged_models(
        datasets=[{"dataset_name": "digits", "dataset_digest": dataset.digest}],
        filter_string=f"source_run_id = '{result.run_id}'",
        order_by=[{"field_name": "metrics.judge/knn", "ascending": False, "dataset_name": "digits"}],
        output_format="list",
    )
    scores = [next(each.value for each in model.metrics if each.key == "judge/knn") for model in ranked]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
