import subprocess
import sys

import pytest

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, parse_subset
from hpt_mlflow.errors import HptError


def test_none_is_the_empty_subset():
    assert parse_subset("none") == ()


def test_all_names_are_the_full_subset():
    assert parse_subset(",".join(AUGMENTATIONS)) == AUGMENTATIONS


@pytest.mark.parametrize("text", ["flip,crop", "crop,flip", " flip , crop ", "crop,flip,crop", "crop,,flip,"])
def test_a_subset_comes_in_the_order_of_application(text):
    assert parse_subset(text) == ("crop", "flip")


@pytest.mark.parametrize("text", ["crop,rotate", "rotate", "none,crop", "Crop", "", ","])
def test_an_unknown_name_is_refused_with_the_choices(text):
    with pytest.raises(HptError) as caught:
        parse_subset(text)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in AUGMENTATIONS)


def test_the_refusal_names_what_is_unknown():
    with pytest.raises(HptError, match="'rotate'"):
        parse_subset("crop,rotate,flip")


def test_the_default_strengths_are_those_of_moco_v2_in_the_paper():
    strengths = Strengths()
    assert strengths.crop_scale == (0.2, 1.0)
    assert (strengths.brightness, strengths.contrast, strengths.saturation, strengths.hue) == (0.4, 0.4, 0.4, 0.4)
    assert (strengths.color_p, strengths.gray_p, strengths.blur_p, strengths.flip_p) == (0.8, 0.2, 0.5, 0.5)
    assert strengths.blur_sigma == (0.1, 2.0)


def test_settings_do_without_the_compiler():
    code = "import sys; import hpt_mlflow.settings; assert not {'numba', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
