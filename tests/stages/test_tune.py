"""A search by way of real studies, workers and runs, with trials of a few steps."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import pytest
from mlflow.tracking import MlflowClient
from mlflow_runs import store_for_copies
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from PIL import Image
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.augment.subset import format_strengths
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.stages.search import trials, workers
from hpt_mlflow.stages.tune import tune
from hpt_mlflow.tuning.space import Space

BASE = {"arch": "shufflenet_v2_x0_5", "image_size": 16, "batch_size": 32, "precision": "float32", "compile": "off"}
# In the folder of the store.
SEARCH = {"data": "digits", "batch_size": 32, "precision": "float32", "compile": "off", "steps": 2}
# By neighbours, as a probe takes ten seconds for each score.
SEARCH |= {"trial_steps": 4, "first_rung": 1, "reduction": 2, "study": "s", "judge": "none", "objective": "knn"}


@pytest.fixture(scope="module")
def trained(empty_database, tmp_path_factory):
    """The database of a store with a model, and its address."""
    folder = tmp_path_factory.mktemp("parent")
    with store_for_copies(folder, empty_database) as database:
        result = hpt_mlflow.pretrain(data=str(write_digits(folder / "digits")), steps=1, milestones="100%", **BASE)
    return database, result.model_uri


@pytest.fixture
def parent(trained, store, tmp_path):
    """A registered model in a store of its own, and the digits."""
    database, model = trained
    shutil.copy(database, tmp_path / "mlflow.db")
    write_digits(tmp_path / "digits")
    return model


def study(name="s"):
    """The study as Optuna's own function opens it."""
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend("hpt_studies.journal")))


def runs(parent_run_id=None, stage="trial"):
    found = mlflow.search_runs(["0"], f"tags.`hpt.stage` = '{stage}'", output_format="list")
    return [r for r in found if parent_run_id is None or r.data.tags.get("mlflow.parentRunId") == parent_run_id]


@pytest.fixture
def whole(parent):
    """A search of five trials, with all that comes after it."""
    return tune(parent=parent, trials=5, alias="target", **SEARCH)


def test_one_run_a_study_one_nested_run_a_trial_and_the_winner_registered(whole, parent):
    client = MlflowClient()
    trials = study().get_trials()
    # Rungs are steps 1, 2 and 4: of five, two go on, and then one, each as a new trial.
    assert [trial.number for trial in trials] == list(range(8))
    assert [list(trial.intermediate_values) for trial in trials] == [[1]] * 5 + [[1, 2]] * 2 + [[1, 2, 4]]
    assert [trial.state for trial in trials] == [TrialState.PRUNED] * 7 + [TrialState.COMPLETE]
    places = [trial.user_attrs["hpt.place"] for trial in trials]
    first = sorted(trials[:5], key=lambda trial: (-trial.value, trial.number))
    # The better one may be certain before the other one is.
    assert places[:5] == list(range(5))
    assert sorted(places[5:7]) == sorted(trial.number for trial in first[:2])
    second = sorted(trials[5:7], key=lambda trial: (-trial.value, places[trial.number]))
    assert places[7] == places[second[0].number]
    # Trained alike each time.
    for trial in trials[5:]:
        assert trial.intermediate_values[1] == pytest.approx(trials[places[trial.number]].value)

    nested = {int(run.data.tags["hpt.trial"]): run for run in runs(whole.run_id)}
    assert sorted(nested) == list(range(8))
    assert len(runs()) == 8
    subsets = ["crop,color,gray,blur,flip", "crop,color,blur,flip", "crop,gray,blur,flip", "crop,blur", "crop"]
    for trial in trials:
        run, subset = nested[trial.number], subsets[places[trial.number]]
        assert run.info.run_name == f"trial {trial.number} {subset}"
        complete = trial.state == TrialState.COMPLETE
        assert run.info.status == ("FINISHED" if complete else "KILLED")
        assert run.data.tags["hpt.trial_state"] == ("complete" if complete else "pruned")
        chosen = {
            name: run.data.params[f"settings/augment_{name}"] for name in ("crop", "color", "gray", "blur", "flip")
        }
        assert chosen == {name: str(int(name in subset.split(","))) for name in chosen}
        scores = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "tune/score")}
        assert scores == pytest.approx(trial.intermediate_values)
        assert trial.user_attrs["hpt.run_id"] == run.info.run_id

    (best,) = study().get_trials(states=[TrialState.COMPLETE])
    version = client.get_model_version_by_alias("hpt", "target")
    assert whole.model_uri == f"models:/hpt/{version.version}"
    winner = ",".join(name for name in ("crop", "color", "gray", "blur", "flip") if best.params[name])
    assert version.tags["hpt.augment"] == winner
    assert version.tags["hpt.parent_model"] == parent
    run = client.get_run(whole.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["hpt.model"] == whole.model_uri
    assert run.data.tags["hpt.study"] == "s"
    assert run.data.metrics["tune/best_score"] == pytest.approx(best.value)
    assert run.data.metrics["tune/steps"] == 5 * 1 + 2 * 2 + 4
    assert "test/accuracy" in whole.metrics
    files = {file.path for file in client.list_artifacts(whole.run_id)}
    assert files >= {
        "rung_curves.png",
        "main_effects.png",
        "trials.json",
    }
    table = json.loads(Path(client.download_artifacts(whole.run_id, "trials.json")).read_text())
    assert len(table["data"]) == 5
    assert whole.model_uri in run.data.tags["mlflow.note.content"]

    # The same command again gives the result.
    again = tune(parent=parent, trials=5, alias="target", **SEARCH)
    assert (again.run_id, again.model_uri) == (whole.run_id, whole.model_uri)
    assert len(runs()) == 8


@pytest.mark.slow
def test_a_larger_budget_takes_only_what_is_new(whole, parent):
    more = tune(parent=parent, trials=7, adapt_winner=False, **SEARCH)
    assert more.run_id == whole.run_id
    trials = study().get_trials()
    assert {t.user_attrs["hpt.place"] for t in trials} == set(range(7))
    assert len({tuple(sorted(t.params.items())) for t in trials}) == 7
    # Each was trained once up to each of its steps; three or more have gone on now, by the new numbers.
    reached = [(t.user_attrs["hpt.place"], max(t.intermediate_values)) for t in trials]
    assert len(set(reached)) == len(reached)
    assert [place for place, step in reached if step == 1] == list(range(7))
    assert 3 <= [step for _, step in reached].count(2) <= 5
    assert len(runs(whole.run_id)) == len(trials)
    assert MlflowClient().get_run(whole.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_folder_without_labels_is_searched_by_rotation(parent, tmp_path):
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(open_dataset("builtin:digits").pictures[:60]):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    found = tune(
        parent=parent,
        augment="crop,flip",
        workers=2,
        **SEARCH | {"data": "photos", "batch_size": 16, "objective": "auto"},
    )
    run = MlflowClient().get_run(found.run_id)
    assert run.data.params["settings/objective"] == "rotation"
    assert not runs(found.run_id, "evaluate")
    assert MlflowClient().get_model_version("hpt", found.model_uri.split("/")[-1]).tags["hpt.augment"]


@pytest.mark.soak
def test_strengths_are_searched_by_tpe_and_go_into_the_adaptation(parent):
    found = tune(parent=parent, trials=6, tune_strengths=True, augment="crop,blur", pruner="none", **SEARCH)
    trials = study().get_trials()
    assert len(trials) == 6
    on = [t for t in trials if t.params["crop"]]
    assert on
    assert all("crop_scale" in t.params for t in on)
    assert all("blur_sigma" not in t.params for t in trials if not t.params["blur"])
    version = MlflowClient().get_model_version("hpt", found.model_uri.split("/")[-1])
    best = max(trials, key=lambda t: t.value)
    subset, strengths = Space(("crop", "blur"), with_strengths=True).read(best.params)
    assert version.tags["hpt.augment"] == (",".join(subset) or "none")
    assert version.tags.get("hpt.strengths", "") == format_strengths(strengths)


@pytest.mark.soak
def test_the_loss_is_minimised(parent):
    found = tune(parent=parent, augment="crop,flip", adapt_winner=False, **SEARCH | {"objective": "infonce"})
    complete = [t.value for t in study().get_trials() if t.state == TrialState.COMPLETE]
    assert study().direction.name == "MINIMIZE"
    assert found.metrics["tune/best_score"] == pytest.approx(min(complete))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augment": "none"}, "augment: none leaves nothing"),
        ({"storage": "journal:no/such/folder/x.log"}, "storage: there is no folder"),
        ({"storage": "postgresql://u:secret@127.0.0.1:1/x"}, "storage: postgresql://u:***@127.0.0.1:1/x"),
        ({"trials": 4}, "trials: 4 is less than the 5 subsets of the paper"),
        ({"first_rung": 9}, "first_rung: 9 exceeds the 4 steps"),
        ({"objective": "infonce", "update": "bn-stats"}, "objective: infonce"),
        ({"parent": "models:/nobody/1"}, "parent: there is no registered model"),
        ({"batch_size": 100_000}, "batch_size: 100000 is more"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(parent, settings, words):
    with pytest.raises(HptError) as error:
        tune(**{"parent": parent, **SEARCH, **settings})
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert not runs(stage="tune")


def test_labels_are_asked_for_where_there_are_none(parent, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.new("RGB", (16, 16), (i, 2 * i, 3 * i)).save(tmp_path / "photos" / f"{i}.png")
    for objective in ("probe", "knn"):
        with pytest.raises(HptError, match=f"objective: {objective} needs labels.*photos has none"):
            tune(parent=parent, **SEARCH | {"data": "photos", "objective": objective, "batch_size": 16})


def test_a_graph_that_no_trial_can_have_is_refused_before_any(parent):
    with pytest.raises(HptError, match="^cuda_graph: .* as the device is cpu"):
        tune(parent=parent, **SEARCH | {"device": "cpu", "cuda_graph": "on"})
    assert not runs(stage="tune")


@pytest.mark.slow
def test_a_study_of_another_space_dataset_or_parent_is_refused_by_name(parent):
    tune(parent=parent, augment="crop,flip", trials=2, adapt_winner=False, **SEARCH)
    other = hpt_mlflow.pretrain(data="digits", steps=1, milestones="100%", seed=1, **BASE).model_uri
    for changed, words in (
        ({"augment": "crop"}, "augment 'crop' instead of 'crop,flip'"),
        ({"data": "builtin:noto"}, "data "),
        ({"parent": other}, f"parent '{other}' instead of '{parent}'"),
        ({"parent": "models:/hpt/latest"}, f"parent '{other}' instead of '{parent}'"),
        ({"objective": "rotation"}, "objective 'rotation' instead of 'knn'"),
    ):
        with pytest.raises(HptError, match="study: 's' exists with other settings") as error:
            tune(**{"parent": parent, "augment": "flip,crop", **SEARCH, **changed})
        assert words in str(error.value)


class Recorder:
    """Notes what is asked of it."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        return lambda *given, **_: self.asked.append((name, *given))


def test_a_gpu_that_is_lost_ends_its_worker_and_gives_its_trial_to_another(monkeypatch):
    def lose(*given):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")

    run, search = Recorder(), Recorder()
    monkeypatch.setattr(trials, "_train", lose)
    with pytest.raises(RuntimeError, match="^CUDA error"):
        trials._train_and_end(run, None, search, "a trial", None)
    reason = "CUDA error: an illegal memory access was encountered"
    assert search.asked == [("give_up", "a trial", reason)]
    assert run.asked == [("tags", {"hpt.trial_state": "failed", "hpt.reason": reason})]
    monkeypatch.setattr(trials, "run_trials", lose)
    with pytest.raises(SystemExit) as caught:
        trials._work({"settings": {"data": "digits", "parent": "models:/hpt/1"}, "deadline": None})
    assert caught.value.code == 1


def test_the_leader_promotes_where_no_worker_of_its_own_does(monkeypatch):
    """Two polls with a worker, and one that finds it gone."""
    happened, places = [], [1, 1, 0]

    class Worker:
        free = ()

        def __len__(self):
            return places[0]

        def ended(self):
            happened.append("poll")
            return []

    class Search:
        def give_up_lost(self, _):
            return []

        def trials(self):
            return []

        def promote(self):
            happened.append("promote")

    monkeypatch.setattr(workers, "children", lambda *_: nullcontext(Worker()))
    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=lambda _: places.pop(0), time=time.time))
    workers.run_search_workers(SimpleNamespace(minutes=None, workers=1), Search(), "run")
    assert happened == ["poll", "poll", "poll", "promote"]
