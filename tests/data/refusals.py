"""How tests say that a dataset is refused."""

import pytest

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


def assert_refused(uri, *words, root=None):
    """Opening fails with one printable line about `data` that contains these words."""
    with pytest.raises(HptError) as caught:
        open_dataset(uri, root)
    message = str(caught.value)
    assert message.startswith("data: ")
    assert message.isprintable()
    for word in words:
        assert str(word) in message
