"""The catalogue says what the paper's notes and the datasets' own pages say."""

import pytest

from hpt_mlflow.data.catalogue import ENTRIES, catalogue_entry
from hpt_mlflow.errors import HptError

# name, classes, mean, std: of the paper's reference code.
REFERENCE = """
domainnet-clipart   345 0.7362 0.7167 0.6834 0.3642 0.3654 0.3887
domainnet-infograph 345 0.6888 0.6970 0.6648 0.3331 0.3094 0.3281
domainnet-painting  345 0.5743 0.5466 0.5083 0.3088 0.3007 0.3168
domainnet-quickdraw 345 0.9525 0.9525 0.9525 0.2128 0.2128 0.2128
domainnet-real      345 0.6059 0.5890 0.5558 0.3344 0.3279 0.3493
domainnet-sketch    345 0.8327 0.8270 0.8179 0.2727 0.2753 0.2810
resisc45             45 0.368  0.381  0.3436 0.2035 0.1854 0.1849
uc-merced            21 0.4842 0.4901 0.4505 0.2180 0.2021 0.1958
xview                60 0.368  0.381  0.3436 0.2035 0.1854 0.1849
viper                 6 0.3485 0.3422 0.3395 0.2449 0.2408 0.2390
bdd100k               6 0.2789 0.2929 0.2902 0.2474 0.2653 0.2761
coco-2014            80 0.4702 0.4470 0.4076 0.2785 0.2740 0.2889
pascal-voc           20 0.4511 0.4292 0.3967 0.2764 0.2729 0.2849
flowers-102         102 0.4355 0.3777 0.2880 0.2970 0.2459 0.2705
chexpert              5 0.5028 0.5028 0.5028 0.2919 0.2919 0.2919
chest-xray-kids       2 0.4815 0.4815 0.4815 0.2377 0.2377 0.2377
"""


def test_the_sixteen_datasets_have_the_statistics_of_the_reference_code():
    rows = [line.split() for line in REFERENCE.strip().splitlines()]
    assert [(entry.key, str(entry.classes)) for entry in ENTRIES] == [(row[0], row[1]) for row in rows]
    for entry, row in zip(ENTRIES, rows, strict=True):
        assert (*entry.mean, *entry.std) == tuple(map(float, row[2:])), entry.key


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_parts_do_not_exceed_the_whole(entry):
    parts = [part for part in entry.sizes[1:] if part is not None]
    if entry.sizes.total is not None:
        assert sum(parts) <= entry.sizes.total
        assert len(parts) < 3 or sum(parts) == entry.sizes.total


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_every_entry_says_where_people_get_it_and_how_it_looks(entry):
    assert "://" in entry.source
    assert entry.layout[0].startswith("DIR/")
    assert len(entry.layout) > 1
    assert entry.split
    assert entry.address == f"paper:{entry.key}?root=DIR"


def test_an_unknown_name_is_refused_with_all_that_there_are():
    with pytest.raises(HptError) as caught:
        catalogue_entry("domainet-clipart")
    message = str(caught.value)
    assert "did you mean domainnet-clipart" in message
    assert "\n" not in message
    assert all(entry.key in message for entry in ENTRIES)
