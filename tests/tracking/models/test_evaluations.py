from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from recorded import TEST_IMAGES, evaluation, predictions, stage

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.addresses import addresses_of_model
from hpt_mlflow.tracking.models.evaluations import common_evaluations, evaluations_of, finished_evaluations
from hpt_mlflow.tracking.models.predictions import compare_evaluations, read_predictions
from hpt_mlflow.tracking.models.results_table import HEADER, result_rows


@pytest.fixture
def models(store, tmp_path):
    """Two versions of hpt."""
    return [stage(tmp_path, "pretrain", dataset) for dataset in ("cats", "dogs")]


def test_evaluations_of_a_model_come_newest_first_and_no_others(models, tmp_path):
    first, _, last = (evaluation(tmp_path, model, 0.7) for model in (models[0], models[1], models[0]))
    with (
        pytest.raises(ZeroDivisionError),
        mlflow.start_run(tags={"hpt.stage": "evaluate", "hpt.parent_model": models[0]}),
    ):
        raise ZeroDivisionError
    assert [one.run_id for one in evaluations_of(models[0])] == [last, first]
    assert len(finished_evaluations()) == 3


def test_an_evaluation_tells_what_it_judged(models, tmp_path):
    evaluation(tmp_path, models[0], 0.7, classifier="hpt-classifier")
    (one,) = evaluations_of(models[0])
    assert one.primary == pytest.approx((0.7, 0.67, 0.73))
    assert (one.dataset, one.protocol, one.classifier) == ("mnist", "fast", "models:/hpt-classifier/1")
    assert one.command("models:/hpt/9") == "hpt evaluate --model models:/hpt/9 --data builtin:mnist"


def test_evaluations_of_a_milestone_and_of_a_copy_are_those_of_the_version(models, tmp_path):
    MlflowClient().copy_model_version(models[0], "production")
    milestone = MlflowClient().get_model_version("hpt", "1").source
    run_ids = {evaluation(tmp_path, address, 0.7) for address in (milestone, models[0], "models:/production/1")}
    for address in (milestone, models[0], "models:/production/1"):
        assert {one.run_id for one in evaluations_of(address)} == run_ids
    assert addresses_of_model(models[1])[0] == models[1]
    assert not {models[0], milestone} & set(addresses_of_model(models[1]))


def test_the_evaluation_of_a_classifier_is_the_one_that_it_came_from(models, tmp_path):
    run_id = evaluation(tmp_path, models[0], 0.7, classifier="hpt-classifier")
    evaluation(tmp_path, models[0], 0.8)
    assert [one.run_id for one in evaluations_of("models:/hpt-classifier/1")] == [run_id]


def test_common_evaluations_are_the_newest_on_the_same_test_images(models, tmp_path):
    a, b = models
    evaluation(tmp_path, a, 0.6)
    newest_a = evaluation(tmp_path, a, 0.7)
    evaluation(tmp_path, a, 0.9, test="f" * 16)
    evaluation(tmp_path, b, 0.6)
    newest_b = evaluation(tmp_path, b, 0.8)
    evaluation(tmp_path, b, 0.9, protocol="paper")
    assert [one.run_id for one in common_evaluations(a, b)] == [newest_a, newest_b]


def test_common_evaluations_are_on_the_preferred_test_images_where_there_are_such(models, tmp_path):
    for model in models:
        for test in ("0" * 16, "1" * 16):
            evaluation(tmp_path, model, 0.7, test=test)
    assert common_evaluations(*models)[1].test_digest == "1" * 16
    assert common_evaluations(*models, preferred="0" * 16)[1].test_digest == "0" * 16
    assert common_evaluations(*models, preferred="2" * 16)[1].test_digest == "1" * 16


@pytest.mark.parametrize("different", [{"test": "f" * 16}, {"protocol": "paper"}])
def test_without_a_common_evaluation_both_and_a_command_are_named(models, tmp_path, different):
    evaluation(tmp_path, models[0], 0.7)
    evaluation(tmp_path, models[1], 0.7, **different)
    with pytest.raises(HptError) as caught:
        common_evaluations(*models)
    for word in (*models, "hpt evaluate --model models:/hpt/1 --data builtin:mnist"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", ["", "1"])
def test_evaluations_of_earlier_versions_are_not_compared(models, tmp_path, contents):
    for model in models:
        evaluation(tmp_path, model, 0.7, contents=contents)
    with pytest.raises(HptError, match="unknown to this version of hpt_mlflow.*run: hpt evaluate"):
        common_evaluations(*models)


def test_a_model_that_nobody_evaluated_is_named_with_the_command(models, tmp_path):
    evaluation(tmp_path, models[0], 0.7)
    with pytest.raises(
        HptError, match="models:/hpt/2 has no finished evaluation; run: hpt evaluate --model models:/hpt/2"
    ):
        common_evaluations(*models)


def test_predictions_are_read_back(models, tmp_path):
    evaluation(tmp_path, models[0], 0.7)
    read = read_predictions(evaluations_of(models[0])[0])
    for name, expected in predictions(0.7).items():
        np.testing.assert_array_equal(getattr(read, name), expected)


def test_missing_and_damaged_predictions_are_named_with_the_command(models, tmp_path):
    run_id = evaluation(tmp_path, models[0], 0.7)
    (one,) = evaluations_of(models[0])
    damaged = tmp_path / "predictions.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    MlflowClient().log_artifact(run_id, str(damaged))
    with pytest.raises(HptError, match="missing or damaged.*run again: hpt evaluate --model models:/hpt/1"):
        read_predictions(one)
    Path(mlflow.get_run(run_id).info.artifact_uri, "predictions.safetensors").unlink()
    with pytest.raises(HptError, match=f"evaluation {run_id} of models:/hpt/1"):
        read_predictions(one)


def test_models_are_compared_on_the_images_that_both_have_seen(models, tmp_path):
    few = {name: tensor[50:] for name, tensor in predictions(0.8, seed=1).items()}
    evaluation(tmp_path, models[0], 0.6)
    evaluation(tmp_path, models[1], 0.8, **few)
    found = compare_evaluations(*common_evaluations(*models))
    assert found.images == TEST_IMAGES - 50
    assert found.primary.a.value == pytest.approx(right_share(predictions(0.6), slice(50, None)))
    assert found.primary.b.value == pytest.approx(right_share(few, slice(None)))


def right_share(tensors, part):
    return (tensors["probabilities"].argmax(axis=1) == tensors["truth"])[part].mean()


def test_labels_that_changed_between_two_evaluations_are_refused(models, tmp_path):
    evaluation(tmp_path, models[0], 0.6)
    evaluation(tmp_path, models[1], 0.8, truth=predictions(0.8)["truth"][::-1].copy())
    with pytest.raises(HptError, match="disagree on the labels"):
        compare_evaluations(*common_evaluations(*models))


def test_results_show_intervals_protocol_and_what_older_and_multi_label_evaluations_have(models, tmp_path):
    with mlflow.start_run(tags={"hpt.stage": "evaluate", "hpt.parent_model": models[0], "hpt.chain": "cats"}):
        mlflow.log_metrics({"test/accuracy": 0.5, "test/balanced_accuracy": 0.4, "random/accuracy": 0.3})
    labelled = {"hpt.stage": "evaluate", "hpt.parent_model": models[0], "hpt.metric": "test/auroc"}
    with mlflow.start_run(tags={**labelled, "hpt.protocol": "fast"}):
        mlflow.log_metrics({"test/auroc": 0.9, "test/auroc_low": 0.85, "test/auroc_high": 0.94})
    evaluation(tmp_path, models[1], 0.7)
    old, multilabel, new = (dict(zip(HEADER, row, strict=True)) for row in result_rows())
    assert (old["figure"], old["value"], old["95% interval"], old["protocol"]) == ("accuracy", "0.500", "-", "-")
    assert (old["balanced"], old["untrained"], old["20-NN"]) == ("0.400", "0.300", "-")
    assert (multilabel["figure"], multilabel["value"], multilabel["95% interval"]) == (
        "auroc",
        "0.900",
        "0.850 to 0.940",
    )
    assert (new["model"], new["evaluated on"], new["95% interval"]) == ("models:/hpt/2", "mnist", "0.670 to 0.730")
