import dataclasses
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hpt_mlflow.cli import hpt
from hpt_mlflow.reference import STAGES


def run(*arguments):
    return CliRunner().invoke(hpt, [str(argument) for argument in arguments])


def assert_one_line_error(result, *words, exit_code=1):
    assert result.exit_code == exit_code, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in lines[0]


def test_help_lists_the_stages():
    result = run("--help")
    assert result.exit_code == 0
    for stage in STAGES:
        assert stage in result.output


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_meaning_and_default_of_every_option(stage):
    text = " ".join(run(stage, "--help").output.split())
    for field in dataclasses.fields(STAGES[stage]):
        assert f"--{field.name.replace('_', '-')} " in text
    assert text.count("efault: ") == len(dataclasses.fields(STAGES[stage]))


def test_help_does_not_wait_for_torch_or_mlflow():
    code = "import sys; from hpt_mlflow.cli import hpt; assert not {'torch', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_setting_out_of_range_names_option_and_value(store):
    assert_one_line_error(run("pretrain", "--temperature", "0"), "temperature", "0.0")


def test_a_word_where_a_number_belongs(store):
    assert_one_line_error(run("pretrain", "--steps", "many"), "'many'", "whole number", exit_code=2)


def test_an_unknown_option_is_refused(store):
    assert_one_line_error(run("pretrain", "--epochs", "3"), "--epochs", exit_code=2)


def test_an_unknown_augmentation_lists_those_that_there_are(store):
    assert_one_line_error(run("pretrain", "--augment", "crop,rotate"), "'rotate'", "color", "flip")


def test_an_unknown_architecture_suggests_a_close_one(store):
    assert_one_line_error(run("pretrain", "--arch", "resnet81"), "'resnet81'", "resnet18")


def test_a_missing_folder_is_named(store, tmp_path):
    assert_one_line_error(run("pretrain", "--data", tmp_path / "nowhere"), tmp_path / "nowhere")


def test_a_folder_without_images_is_named(store, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_line_error(run("pretrain", "--data", tmp_path / "empty"), "no images", "empty")


def test_a_device_that_is_not_here(store):
    assert_one_line_error(run("pretrain", "--data", "builtin:digits", "--device", "cuda:97"), "cuda:97")


def test_milestones_outside_the_training(store):
    result = run("pretrain", "--data", "builtin:digits", "--steps", "10", "--milestones", "5,20")
    assert_one_line_error(result, "milestones", 20, 10)


def test_a_batch_larger_than_the_dataset(store):
    result = run("pretrain", "--data", "builtin:digits", "--batch-size", "5000")
    assert_one_line_error(result, "batch_size", 5000, 1438)


def test_an_alias_that_mlflow_would_refuse_is_refused_before_the_training(store):
    assert_one_line_error(run("pretrain", "--data", "builtin:digits", "--alias", "v3"), "alias", "'v3'")


def test_a_parent_that_is_not_there(store):
    assert_one_line_error(run("adapt", "--parent", "models:/hpt/latest"), "parent", "'hpt'", "pretrain first")


def test_an_address_that_is_none(store):
    assert_one_line_error(run("evaluate", "--model", "s3://bucket/model"), "model", "s3://bucket/model")


def test_a_tracking_server_that_is_not_there(monkeypatch, unused_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = run("pretrain", "--data", "builtin:digits", "--image-size", "16")
    assert_one_line_error(result, "tracking server", unused_port, "nobody answers")


def test_nothing_is_left_behind_by_a_refused_stage(store, tmp_path):
    import mlflow

    run("pretrain", "--data", "builtin:digits", "--batch-size", "5000")
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []
