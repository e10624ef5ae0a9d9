"""Stages that learn from a part of the images."""

import mlflow
import numpy as np
import pytest
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import PretrainSettings
from hpt_mlflow.stages.training.resolve import split_for
from hpt_mlflow.tracking.models.seen_images import seen_images

TINY = {"arch": "shufflenet_v2_x0_5", "image_size": 16, "steps": 2, "batch_size": 16, "precision": "float32"}


def test_a_training_sees_so_many_images_and_says_so(store, tmp_path):
    data = str(write_digits(tmp_path / "digits"))
    run_id = hpt_mlflow.pretrain(data=data, images="25%", compile="off", milestones="100%", **TINY).run_id
    run, few = mlflow.get_run(run_id), seen_images(run_id)
    split = open_dataset(data).split(0)
    assert len(few.contents) == round(0.25 * len(split.seen))
    assert run.data.params["settings/images"] == "25%"
    assert f"{len(few.contents)} images seen, {len(split.test)} kept for test" in run.data.tags["mlflow.note.content"]
    # What it has not seen may still be tested on, and is: the split of the evaluation is that of all images.
    result = hpt_mlflow.evaluate(model=f"runs:/{run_id}", data=data, untrained=False)
    assert result.metrics["data/test_images_seen"] == 0


def test_more_images_than_there_are_are_refused():
    with pytest.raises(HptError, match=r"^images: 5000 is more than the 1438 images of digits that training may see"):
        split_for(PretrainSettings(images="5000"), open_dataset("builtin:digits"))


@pytest.mark.parametrize("text", ["many", "0", "0%", "101%", "-3", "nan%"])
def test_no_number_of_images_is_refused(text):
    with pytest.raises(HptError, match="^images: "):
        PretrainSettings(images=text)


def test_all_images_are_the_default():
    dataset = open_dataset("builtin:digits")
    everything = split_for(PretrainSettings(), dataset)
    np.testing.assert_array_equal(everything.seen, split_for(PretrainSettings(images="100%"), dataset).seen)
