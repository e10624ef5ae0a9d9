from types import SimpleNamespace

import numpy as np
import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.stages import task as task_module
from hpt_mlflow.stages.task import check_unseen
from hpt_mlflow.tracking.seen_images import SeenImages


@pytest.fixture
def seen_of_thousand(monkeypatch):
    """How many of 1,000 test images are taken for seen, where a stage kept so many of their fingerprints."""

    def ask(kept, share, allow_seen=False):
        stage = SimpleNamespace(
            dataset_digest="other", dataset_name="birds", split_seed=0, run_id="run", stage="pretrain"
        )
        monkeypatch.setattr(task_module, "stages_behind", lambda model: [stage])
        seen = SeenImages(np.arange(1, 1 + kept), share)
        monkeypatch.setattr(task_module, "seen_images", lambda run_id: seen)
        task = SimpleNamespace(
            split=SimpleNamespace(test=np.arange(1000)), part_content=lambda part: np.arange(1, 1 + len(part))
        )
        settings = SimpleNamespace(split_seed=0, allow_seen=allow_seen)
        return check_unseen(settings, "model", SimpleNamespace(digest="own", name="cats", test=None), task)

    return ask


def test_where_all_images_were_looked_at_the_limit_is_exact(seen_of_thousand):
    assert seen_of_thousand(10, 1.0) == 10
    with pytest.raises(HptError, match="data: 11 of 1000 test images"):
        seen_of_thousand(11, 1.0)


def test_of_a_sample_the_number_is_estimated(seen_of_thousand):
    assert seen_of_thousand(50, 0.1, allow_seen=True) == 500
    assert seen_of_thousand(200, 0.1, allow_seen=True) == 1000
    assert seen_of_thousand(0, 0.1) == 0
    with pytest.raises(HptError, match="about 500 of 1000"):
        seen_of_thousand(50, 0.1)


def test_of_a_sample_more_than_chance_is_needed(seen_of_thousand):
    # A hundredth of the images, of which a tenth was looked at, is 1; two standard deviations are 1.9.
    assert seen_of_thousand(2, 0.1) == 20
    with pytest.raises(HptError, match="about 30 of 1000"):
        seen_of_thousand(3, 0.1)
