"""Stages train by any registered method, and say by which."""

import mlflow
import pytest

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import METHODS, all_options, load_method, options_of
from hpt_mlflow.settings import PretrainSettings

TINY = {"data": "builtin:digits", "image_size": 16, "batch_size": 32, "steps": 2, "precision": "float32"}
PRETRAIN = TINY | {"arch": "shufflenet_v2_x0_5"}


# Without a teacher, with a queue, and with views of several sizes; what else differs is in tests/methods.
QUICK = ("lejepa", "moco", "dino")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_a_chain_is_trained_and_searched_by_a_method(store, method, tmp_path):
    pretrained = hpt_mlflow.pretrain(method=method, **PRETRAIN)
    adapted = hpt_mlflow.adapt(method=method, parent=pretrained.model_uri, update="bn", judge="none", **TINY)
    hpt_mlflow.tune(
        method=method,
        parent=adapted.model_uri,
        storage=f"journal:{tmp_path}/studies.journal",
        objective="infonce",
        augment="crop",
        adapt_winner=False,
        **TINY,
    )
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    trained = [run for run in runs if run.data.tags["hpt.stage"] in ("pretrain", "adapt")]
    assert len(trained) == 2
    for run in trained:
        assert run.data.tags["hpt.method"] == run.data.params["settings/method"] == method
        values = {name: run.data.params[f"settings/{name}"] for name in all_options()}
        assert {name for name, value in values.items() if value != "None"} == options_of(method)
        assert f"**Method** {load_method(method).title}, shufflenet" in run.data.tags["mlflow.note.content"]


def test_a_parent_may_come_from_another_method_and_the_run_says_so(store):
    hpt_mlflow.pretrain(method="simclr", **PRETRAIN)
    adapted = hpt_mlflow.adapt(method="moco", judge="none", **TINY)
    tags = mlflow.get_run(adapted.run_id).data.tags
    assert (tags["hpt.method"], tags["hpt.parent_method"]) == ("moco", "simclr")
    assert "(trained by simclr; only its backbone is used)" in tags["mlflow.note.content"]


def test_an_unknown_method_is_refused():
    with pytest.raises(HptError, match="method: 'mocha' is not one of moco, simclr"):
        PretrainSettings(method="mocha")


def test_an_option_of_another_method_is_refused():
    with pytest.raises(HptError, match="queue_size: simclr has no such option; leave it out, or use method moco"):
        PretrainSettings(method="simclr", queue_size=64)
    assert PretrainSettings(method="simclr", temperature=0.2).temperature == 0.2
