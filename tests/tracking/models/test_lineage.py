import mlflow
import pytest
from mlflow.tracking import MlflowClient
from recorded import evaluation, stage

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.models.lineage import LONGEST_CHAIN, lineage, what_is_unknown


@pytest.fixture
def chain(store, tmp_path):
    """Three versions of hpt, each from the one before."""
    first = stage(tmp_path, "pretrain", "imagenet")
    second = stage(tmp_path, "adapt", "cats", first, tags={"hpt.update": "bn"}, params={"split_seed": 7})
    return [first, second, stage(tmp_path, "adapt", "tabbies", second)]


def test_the_chain_leads_back_to_random_weights(chain, tmp_path):
    MlflowClient().set_registered_model_alias("hpt", "source", "2")
    evaluation(tmp_path, chain[1], 0.7)
    nodes = lineage(chain[2])
    assert [node.address for node in nodes] == chain[::-1]
    assert [node.stage for node in nodes] == ["adapt", "adapt", "pretrain"]
    assert [node.start for node in nodes] == [chain[1], chain[0], "random weights (seed 0)"]
    middle = nodes[1]
    assert middle.aliases == ("source",)
    assert (middle.dataset_name, middle.dataset_digest, middle.sizes["images"]) == ("cats", "d-cats", 5000)
    assert (middle.update, middle.split_seed, middle.method["steps"], middle.validation) == ("bn", 7, "500", 0.81)
    assert what_is_unknown(nodes) == ""
    assert [one.primary.value for one in middle.evaluations] == [0.7]


def test_only_the_newest_evaluation_of_each_kind_is_told(chain, tmp_path):
    for accuracy, protocol in ((0.6, "fast"), (0.7, "fast"), (0.9, "paper")):
        evaluation(tmp_path, chain[0], accuracy, protocol=protocol)
    (node,) = lineage(chain[0])
    assert [(one.protocol, one.primary.value) for one in node.evaluations] == [("paper", 0.9), ("fast", 0.7)]


def test_the_chain_leads_back_to_imported_weights(store, tmp_path):
    tags = {"hpt.weights": "resnet50.pth", "hpt.weights_sha256": "ab" * 32, "hpt.weights_format": "torchvision"}
    first = stage(tmp_path, "import", "imagenet", tags=tags)
    assert lineage(stage(tmp_path, "adapt", "cats", first))[-1].start == (
        "imported weights resnet50.pth (torchvision, sha256 abababababab)"
    )


def test_a_milestone_and_a_run_as_parents_are_followed(chain, tmp_path):
    milestone = MlflowClient().get_model_version("hpt", "1").source
    run_id = lineage(chain[0])[0].run_id
    for parent in (milestone, f"runs:/{run_id}/step-500"):
        nodes = lineage(stage(tmp_path, "adapt", "birds", parent))
        assert [node.address for node in nodes[1:]] == [parent]
        assert (nodes[1].dataset_name, nodes[1].start) == ("imagenet", "random weights (seed 0)")


def test_a_deleted_parent_ends_the_chain_with_words(chain):
    MlflowClient().delete_model_version("hpt", "1")
    nodes = lineage(chain[2])
    assert [node.address for node in nodes] == [chain[2], chain[1]]
    assert nodes[-1].start == f"{chain[0]}, which is deleted: the stages before it are unknown"
    assert what_is_unknown(nodes) == f"{chain[0]} is deleted, and what it learned from is unknown"


def test_a_deleted_run_leaves_what_it_knew(chain):
    run_id = lineage(chain[1])[0].run_id
    mlflow.delete_run(run_id)
    assert [node.dataset_name for node in lineage(chain[2])] == ["tabbies", "cats", "imagenet"]


def test_a_copy_leads_to_what_it_is_a_copy_of(chain):
    MlflowClient().copy_model_version(chain[1], "production")
    nodes = lineage("models:/production/1")
    assert [node.address for node in nodes] == ["models:/production/1", chain[1], chain[0]]
    assert nodes[0].copied_from == chain[1]
    MlflowClient().delete_model_version("hpt", "2")
    nodes = lineage("models:/production/1")
    assert [node.address for node in nodes] == ["models:/production/1", chain[0]]


def test_a_classifier_stands_on_its_backbone(chain, tmp_path):
    evaluation(tmp_path, chain[1], 0.7, classifier="hpt-classifier")
    nodes = lineage("models:/hpt-classifier/1")
    assert [node.address for node in nodes] == ["models:/hpt-classifier/1", chain[1], chain[0]]
    assert (nodes[0].stage, nodes[0].dataset_name) == ("evaluate", "mnist")
    trained = [node.address for node in lineage("models:/hpt-classifier/1") if node.trained]
    assert trained == [chain[1], chain[0]]


def test_a_model_that_is_not_there_is_named(store):
    with pytest.raises(HptError, match="models:/hpt/3"):
        lineage("models:/hpt/3")


def test_records_in_a_circle_end(chain):
    run_id = lineage(chain[0])[-1].run_id
    MlflowClient().set_tag(run_id, "hpt.parent_model", chain[2])
    nodes = lineage(chain[2], with_evaluations=False)
    assert len(nodes) == LONGEST_CHAIN
    assert what_is_unknown(nodes) == f"the chain has more than {LONGEST_CHAIN} stages"
