"""Stages train by any registered method, and say by which."""

import mlflow
import pytest
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import METHODS, all_options, load_method, options_of
from hpt_mlflow.settings import PretrainSettings

# In the folder of the store.
TINY = {"data": "digits", "image_size": 16, "batch_size": 32, "steps": 2, "precision": "float32"}
PRETRAIN = TINY | {"arch": "shufflenet_v2_x0_5"}


@pytest.fixture(autouse=True)
def digits(store, tmp_path):
    write_digits(tmp_path / "digits")


def assert_trained_by(method, run):
    assert run.data.tags["hpt.method"] == run.data.params["settings/method"] == method
    values = {name: run.data.params[f"settings/{name}"] for name in all_options()}
    assert {name for name, value in values.items() if value != "None"} == options_of(method)
    assert f"**Method** {load_method(method).title}, shufflenet" in run.data.tags["mlflow.note.content"]


# The search alone takes as long as all else here; that of one method is in tests/stages/test_tune.py.
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_chain_is_trained_and_searched_by_a_method(method, tmp_path):
    pretrained = hpt_mlflow.pretrain(method=method, **PRETRAIN)
    adapted = hpt_mlflow.adapt(method=method, parent=pretrained.model_uri, update="bn", judge="none", **TINY)
    hpt_mlflow.tune(
        method=method,
        parent=adapted.model_uri,
        storage=f"journal:{tmp_path}/studies.journal",
        objective="infonce",
        augment="crop",
        adapt_winner=False,
        workers=1,
        **TINY,
    )
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    trained = [run for run in runs if run.data.tags["hpt.stage"] in ("pretrain", "adapt")]
    assert len(trained) == 2
    for run in trained:
        assert_trained_by(method, run)


# Without a teacher, with a queue, and with views of several sizes; what else differs is in tests/methods.
@pytest.mark.parametrize(("first", "then"), [("simclr", "moco"), ("lejepa", "dino")])
def test_a_parent_may_come_from_another_method_and_the_run_says_so(first, then):
    pretrained = hpt_mlflow.pretrain(method=first, **PRETRAIN)
    adapted = hpt_mlflow.adapt(method=then, judge="none", **TINY)
    for method, result in ((first, pretrained), (then, adapted)):
        assert_trained_by(method, mlflow.get_run(result.run_id))
    tags = mlflow.get_run(adapted.run_id).data.tags
    assert tags["hpt.parent_method"] == first
    assert f"(trained by {first}; only its backbone is used)" in tags["mlflow.note.content"]


def test_an_unknown_method_is_refused():
    with pytest.raises(HptError, match="method: 'mocha' is not one of moco, simclr"):
        PretrainSettings(method="mocha")


def test_an_option_of_another_method_is_refused():
    with pytest.raises(HptError, match="queue_size: simclr has no such option; leave it out, or use method moco"):
        PretrainSettings(method="simclr", queue_size=64)
    assert PretrainSettings(method="simclr", temperature=0.2).temperature == 0.2
