"""What was left out is counted in words."""

import pytest

from hpt_mlflow.data.account import LeftOut


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (LeftOut("images in folders that are not a part", 1, ("old/a.png",)), "1 image in folders that are not a part"),
        (LeftOut("identical images with different labels", 1, ()), "1 identical image with different labels"),
        (LeftOut("files .heic", 2, ("a.heic", "b.heic"), "not read"), "2 files .heic (a.heic, b.heic): not read"),
        (LeftOut("rows that repeat an image", 3, ("a", "b")), "3 rows that repeat an image (a, b, ...)"),
    ],
)
def test_a_kind_is_one_phrase(entry, words):
    assert str(entry).startswith(words)
