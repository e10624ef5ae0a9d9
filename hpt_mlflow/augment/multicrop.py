"""Multi-crop: small views of small parts of an image, beside those of full size (SwAV, section 3.2).

SwAV is by Caron et al., NeurIPS 2020, arXiv 2006.09882.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.augment.subset import Strengths

# As in the reference code of DINO: 96 pixels beside 224, and at least 5% of the area.
LOCAL_SHARE = 96 / 224
SMALLEST_AREA = 0.05


class LocalViews(NamedTuple):
    """The small views of a method.

    Attributes:
        views: their number per image.
        side: in pixels.
    """

    views: int
    side: int


NONE = LocalViews(0, 0)


def local_strengths(strengths: Strengths) -> Strengths:
    """Those of small views: they show the areas below the ones that views of full size show.

    Where these take shares from s to 1 of the area, small ones take shares from 0.05 to s, as in the reference code of
    DINO (s is 0.4 there for transformers, 0.14 for ResNet-50); always s, if it is below 0.05.
    """
    smallest = strengths.crop_scale[0]
    return replace(strengths, crop_scale=(min(SMALLEST_AREA, smallest), smallest))


def useful_side(size: int, strengths: Strengths, local: LocalViews) -> int:
    """`smallest_useful_side` for views of both sizes: small parts need more pixels, small views need fewer."""
    whole = smallest_useful_side(size, strengths.crop_scale)
    return max(whole, smallest_useful_side(local.side, local_strengths(strengths).crop_scale))
