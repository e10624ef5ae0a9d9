import re
import shutil
import socket
import subprocess
import sys
from urllib.parse import parse_qs

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from recorded import evaluation, three_stages

from hpt_mlflow.cli import hpt


def run(*arguments):
    return CliRunner().invoke(hpt, [str(argument) for argument in arguments])


def assert_one_line_error(result, *words, exit_code=1):
    assert result.exit_code == exit_code, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in line


def words_of(result):
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def chain_store(empty_database, tmp_path_factory):
    """A store with three versions of hpt, each from the one before: 0.60, 0.72 and 0.70."""
    stages = [("pretrain", "imagenet", None), ("adapt", "cats", 0), ("adapt", "tabbies", 1)]
    return three_stages(empty_database, tmp_path_factory.mktemp("chain"), stages, (0.6, 0.72, 0.7))


@pytest.fixture
def chain(chain_store, store, tmp_path):
    file, made = chain_store
    shutil.copy(file, tmp_path / "mlflow.db")
    return made


def test_compare_says_which_is_better_by_how_much_and_how_sure(chain):
    text = words_of(run("compare", chain[0], chain[1]))
    assert "mnist, protocol fast, 400 test images of both" in text
    assert "accuracy 0.600 (" in text
    assert "+0.120 (" in text
    assert "balanced accuracy" in text
    assert "McNemar's test of accuracy: models:/hpt/1 alone is right on" in text
    assert "models:/hpt/2 is better by 12.0 points of accuracy (95%: " in text


def test_compare_names_the_better_one_whichever_comes_first(chain):
    text = words_of(run("compare", chain[1], chain[0]))
    assert "models:/hpt/2 is better by 12.0 points" in text
    assert "-0.120 (-0." in text


def test_compare_says_where_no_difference_is_shown(chain):
    assert "No difference is shown: -2.0 points of accuracy (95%: -" in words_of(run("compare", chain[1], chain[2]))


def test_compare_takes_aliases(chain):
    MlflowClient().set_registered_model_alias("hpt", "base", "1")
    assert "models:/hpt/2 is better" in words_of(run("compare", "base", chain[1]))


def test_compare_of_labels_speaks_of_auroc_and_of_no_test_for_classes(chain, tmp_path):
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 3)) < 0.4).astype(np.uint8)
    for model, skill in ((chain[0], 0.1), (chain[1], 0.9)):
        probabilities = (rng.random((300, 3)) + skill * truth).astype(np.float32) / 2
        tensors = {"index": np.arange(300), "truth": truth, "probabilities": probabilities}
        run_id = evaluation(tmp_path, model, 0.5, test="a" * 16, **tensors)
        MlflowClient().set_tag(run_id, "hpt.metric", "test/auroc")
    text = words_of(run("compare", chain[0], chain[1]))
    assert "points of auroc (95%" in text
    assert "McNemar" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "models:/hpt/1", "models:/hpt/1"), ("both are models:/hpt/1",)),
        (("compare", "models:/hpt/1", "models:/hpt/9"), ("model_b", "'9'")),
        (("compare", "champion", "models:/hpt/1"), ("model_a", "'champion'")),
        (("promote",), ("name the version to promote",)),
        (("promote", "models:/hpt/9"), ("'9'",)),
        (("promote", "models:/hpt/1", "--force"), ("--reason",)),
        (("promote", "models:/hpt/1", "--to", "a/b"), ("'a/b'",)),
        (("promote", "models:/hpt/1", "--alias", "v3"), ("'v3'",)),
        (("promote", "--back"), ("no champion before",)),
        (("promote", "nobody", "--back"), ("'nobody'",)),
        (("promote", "--back", "--to", "production"), ("--alias only",)),
        (("history", "nobody"), ("'nobody'",)),
        (("lineage", "models:/nobody/1"), ("'nobody'",)),
    ],
)
def test_what_cannot_be_is_one_line(chain, arguments, words):
    assert_one_line_error(run(*arguments), *words)


def test_a_margin_that_is_no_number(chain):
    assert_one_line_error(run("promote", chain[0], "--margin", "much"), "'much'", exit_code=2)


def test_promote_shows_the_comparison_and_what_moved(chain):
    assert words_of(run("promote", chain[0])) == (
        "models:/hpt/1 is champion of hpt now. models:/hpt-classifier/1 is champion of hpt-classifier now."
    )
    text = words_of(run("promote", chain[1]))
    assert "models:/hpt/2 is better by 12.0 points" in text
    assert "models:/hpt/2 is champion of hpt now, after models:/hpt/1." in text
    assert_one_line_error(run("promote", chain[2]), "models:/hpt/3 is worse", "which may be chance")
    assert words_of(run("promote", chain[1])) == "Note: models:/hpt/2 is champion already."


def test_promote_back_and_to(chain):
    run("promote", chain[0])
    run("promote", chain[1])
    assert "models:/hpt/1 is champion of hpt now, after models:/hpt/2." in words_of(run("promote", "--back"))
    assert "models:/production/1 is champion of production now." in words_of(
        run("promote", chain[1], "--to", "production", "--no-standalone")
    )


def test_history_says_which_version_was_champion_when_and_why(chain):
    assert words_of(run("history", "hpt")) == "No promotion to champion is recorded."
    run("promote", chain[1])
    run("promote", chain[0], "--force", "--reason", "to look at it")
    run("promote", "--back")
    header, _, *rows = run("history", "hpt").output.splitlines()
    assert header.split() == ["since", "until", "version", "figure", "by", "how"]
    assert [row.split()[-1] for row in rows] == ["promoted", "it", "back"]
    assert "0.720 (0.690 to 0.750)" in rows[0]
    assert "forced: to look at it" in rows[1]
    since, until = ([row[:19] for row in rows], [row[21:40].strip() for row in rows])
    assert until == [*since[1:], "now"]


def test_history_says_where_the_alias_was_moved_by_hand(chain):
    run("promote", chain[0])
    MlflowClient().set_registered_model_alias("hpt", "champion", "3")
    text = words_of(run("history", "hpt"))
    assert "Note: champion points to version 3 now; it was changed without hpt promote." in text


def test_lineage_is_a_tree_back_to_random_weights(chain):
    run("promote", chain[1])
    lines = run("lineage", chain[2]).output.splitlines()
    assert lines[0] == "models:/hpt/3"
    assert "└─ models:/hpt/2  [champion]" in lines
    assert "   └─ models:/hpt/1" in lines
    assert lines[-1] == "      └─ random weights (seed 0)"
    assert all(len(line) <= 110 for line in lines)
    text = " ".join(" ".join(lines).replace("│", "").split())
    assert "adapted on tabbies: 5,000 images, 3,000 train" in text
    assert "evaluated on mnist: test/accuracy 0.720 (0.690 to 0.750), protocol fast" in text
    assert "update all, arch resnet18, image size 32, steps 500" in text


def test_lineage_of_a_chain_whose_beginning_is_deleted_ends_in_words(chain):
    MlflowClient().delete_model_version("hpt", "1")
    assert "└─ models:/hpt/1, which is deleted: the stages before it are unknown" in words_of(run("lineage", chain[2]))


def test_results_show_the_interval(chain):
    header, _, *rows = run("results").output.splitlines()
    assert "95% interval" in header
    assert "0.690 to 0.750" in rows[1]


@pytest.mark.parametrize("command", ["compare", "promote", "history", "lineage"])
def test_help_shows_an_example(command):
    assert f"hpt {command} " in words_of(run(command, "--help")).partition("Example")[2]


def test_help_does_not_wait_for_torch_or_mlflow():
    code = "import sys; from hpt_mlflow.cli import hpt; assert not {'torch', 'mlflow', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ui_opens_on_the_evaluations_of_the_same_test_images(chain):
    from hpt_mlflow.tracking.models.results_table import comparison_path

    page, _, query = comparison_path().partition("?")
    assert page == "#/experiments/0/runs"
    shown = parse_qs(query)
    assert shown["compareRunsMode"] == ["CHART"]
    assert len(mlflow.search_runs(["0"], shown["searchFilter"][0])) == 3


def test_the_ui_of_an_empty_store_shows_its_experiments(store):
    from hpt_mlflow.tracking.models.results_table import comparison_path

    assert comparison_path() == "#/experiments"


def test_a_port_that_is_taken_is_named(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("ui", "--no-browser", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert re.search(r"Error: port: \d+ cannot be used \(Address already in use\); name a free one\n", result.output)
