"""The 16 datasets of the paper: what each is, where people get it, and how its folder looks when it is unpacked.

Channel statistics, domains, numbers of classes and metrics are those of the paper's reference code. Everything else is
from the publication or page of the dataset, or counted in public copies of it. None stands for what could not be
confirmed there.
"""

from __future__ import annotations

import difflib

from hpt_mlflow.data.paper_entry import CatalogueEntry, Channels, Sizes
from hpt_mlflow.errors import HptError


def _domainnet(
    domain: str,
    kind: str,
    parts: tuple[int, int],
    mean: Channels,
    std: Channels,
    file: str | None = None,
    note: str = "",
) -> CatalogueEntry:
    """One of the six domains, by its numbers of images for train and test after cleaning, and how a file is named."""
    file = file or f"{domain}_001_000005.jpg"
    return CatalogueEntry(
        key=f"domainnet-{domain}",
        title=f"DomainNet {domain}",
        domain=kind,
        task="classification",
        classes=345,
        sizes=Sizes(sum(parts), parts[0], None, parts[1]),
        metric="accuracy",
        mean=mean,
        std=std,
        split=f"train and test by the lists {domain}_train.txt and {domain}_test.txt; test is held out",
        source="https://ai.bu.edu/M3SDA (the cleaned version, whose lists are those of domainnet/txt/)",
        licence="non-commercial academic research, as fair use of copyrighted pictures",
        layout=(
            "DIR/",
            f"  {domain}_train.txt, {domain}_test.txt     lines: {domain}/aircraft_carrier/{file} 0",
            "    the lists of domainnet/txt/, not those of the original version; splits/ may hold them",
            f"  {domain}/CLASS/*{file[-4:]}",
        ),
        note=note,
    )


ENTRIES: tuple[CatalogueEntry, ...] = (
    _domainnet("clipart", "illustration", (33_525, 14_604), (0.7362, 0.7167, 0.6834), (0.3642, 0.3654, 0.3887)),
    _domainnet("infograph", "illustration", (36_023, 15_582), (0.6888, 0.6970, 0.6648), (0.3331, 0.3094, 0.3281)),
    _domainnet(
        "painting",
        "illustration",
        (50_416, 21_850),
        (0.5743, 0.5466, 0.5083),
        (0.3088, 0.3007, 0.3168),
        note="The 327 images of t-shirt are in test alone and are left out: 344 classes are opened.",
    ),
    _domainnet(
        "quickdraw",
        "illustration",
        (120_750, 51_750),
        (0.9525, 0.9525, 0.9525),
        (0.2128, 0.2128, 0.2128),
        file="5347855063580672.png",
    ),
    _domainnet("real", "photo", (120_906, 52_041), (0.6059, 0.5890, 0.5558), (0.3344, 0.3279, 0.3493)),
    _domainnet("sketch", "illustration", (48_212, 20_916), (0.8327, 0.8270, 0.8179), (0.2727, 0.2753, 0.2810)),
    CatalogueEntry(
        key="resisc45",
        title="NWPU-RESISC45",
        domain="aerial",
        task="classification",
        classes=45,
        sizes=Sizes(31_500),
        metric="accuracy",
        mean=(0.368, 0.381, 0.3436),
        std=(0.2035, 0.1854, 0.1849),
        split="none; the project splits within each class by --split-seed",
        source="https://gcheng-nwpu.github.io/#Datasets",
        licence="CC BY-NC 4.0",
        layout=("DIR/ (NWPU-RESISC45)", "  CLASS/CLASS_001.jpg ... CLASS_700.jpg"),
        note="The reference code has a split of its own, utils/raw-tf-splits/resisc45: 18,900 train, 6,300 validation, "
        "6,300 test.",
    ),
    CatalogueEntry(
        key="uc-merced",
        title="UC Merced Land Use",
        domain="aerial",
        task="classification",
        classes=21,
        sizes=Sizes(2_100),
        metric="accuracy",
        mean=(0.4842, 0.4901, 0.4505),
        std=(0.2180, 0.2021, 0.1958),
        split="none; the project splits within each class by --split-seed",
        source="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        licence="images of the USGS National Map, public domain",
        layout=("DIR/ (UCMerced_LandUse)", "  Images/CLASS/CLASS00.tif ... CLASS99.tif"),
        note="The reference code has a split of its own, utils/raw-tf-splits/uc_merced: 1,260 train, 420 validation, "
        "420 test.",
    ),
    CatalogueEntry(
        key="xview",
        title="xView",
        domain="aerial",
        task="object presence (multi-label)",
        classes=60,
        sizes=Sizes(None, 846, 281, None),
        metric="AUROC; detection",
        mean=(0.368, 0.381, 0.3436),
        std=(0.2035, 0.1854, 0.1849),
        split="60% train, 19% validation, 21% test; labels are published of train alone, which is split here",
        source="https://challenge.xviewdataset.org (with an account)",
        licence="CC BY-NC-SA 4.0; not to be passed on",
        layout=(
            "DIR/",
            "  xView_train.geojson     or train_labels/xView_train.geojson",
            "  train_images/*.tif      or train_images/train_images/*.tif",
            "  val_images/*.tif        without labels, not opened",
        ),
        note="The reference code judges 36 labels, and detection on chips of 512 pixels; the 36 and its lists are not "
        "published, and this project reads whole scenes with 60 types. The geojson also names 1395.tif, which is in no "
        "archive. The reference code gives it RESISC45's channel statistics.",
    ),
    CatalogueEntry(
        key="viper",
        title="VIPER (Playing for Benchmarks)",
        domain="driving, rendered",
        task="classification of the weather",
        classes=6,
        sizes=Sizes(254_000, 134_000, 50_000, 70_000),
        metric="accuracy; AUROC",
        mean=(0.3485, 0.3422, 0.3395),
        std=(0.2449, 0.2408, 0.2390),
        split="train, val and test by geographically distinct areas; test is held out",
        source="https://playing-for-benchmarks.org/download",
        licence=None,
        layout=(
            "DIR/",
            "  train/img/001/001_00001.jpg, val/img/..., test/img/...     jpg, png or both",
            "  meta/train_weather.txt, val_weather.txt, test_weather.txt     all or none: lines PATH LABEL",
        ),
        note="Its authors name 5 conditions (day, sunset, rain, night, snow). The reference code contradicts itself: "
        "utils/pretrain-configs/viper.sh has 6 classes of weather, but all its configurations of evaluation have 23 "
        "labels, judged by AUROC, from meta/train_multi_label.txt and so on. No list is published; without those of "
        "the weather it opens without labels. Sizes are rounded.",
    ),
    CatalogueEntry(
        key="bdd100k",
        title="BDD100K",
        domain="driving",
        task="classification of the weather",
        classes=6,
        sizes=Sizes(100_000, 70_000, 10_000, 20_000),
        metric="accuracy; detection",
        mean=(0.2789, 0.2929, 0.2902),
        std=(0.2474, 0.2653, 0.2761),
        split="train, val and test; test is not in the lists of 2018 and 2020, so val is held out as test",
        source="https://dl.cv.ethz.ch/bdd100k/data/ (no account); labels of one image a file: "
        "http://bdd-data.berkeley.edu/download.html",
        licence="BDD100K License (Regents of the University of California, 2018), images and labels: use, copying, "
        "changing and passing on, with its notice, for education, research and not-for-profit; commercial use for "
        "members of BDD and BAIR Commons and their affiliates alone",
        layout=(
            "DIR/",
            "  images/100k/train/*.jpg, images/100k/val/*.jpg     or in 100k/ or bdd100k_images_100k/100k/",
            "  labels/bdd100k_labels_images_train.json, ..._val.json",
            "    or labels/det_20/det_train.json, det_val.json",
            "    or labels/detection20/det_v2_train_release.json, det_v2_val_release.json",
            "    or labels/100k/train/*.json, labels/100k/val/*.json     or in 100k/ or bdd100k_labels/100k/",
        ),
        note="Classes are rainy, snowy, clear, overcast, partly cloudy and foggy; images of undefined weather are left "
        "out. Which 6 classes the reference code has is not stated. The lists lack 137 of the 70,000 train images. The "
        "files of one image each have the weather of test too, which is not opened. Kaggle's copies open as well.",
    ),
    CatalogueEntry(
        key="coco-2014",
        title="COCO 2014",
        domain="photo",
        task="object presence (multi-label)",
        classes=80,
        sizes=Sizes(164_062, 82_783, 40_504, 40_775),
        metric="AUROC",
        mean=(0.4702, 0.4470, 0.4076),
        std=(0.2785, 0.2740, 0.2889),
        split="train2014, val2014 and test2014; labels of test2014 are not published, so val2014 is held out as test",
        source="https://cocodataset.org/#download",
        licence="annotations CC BY 4.0; images under Flickr's terms of use, by their owners",
        layout=(
            "DIR/",
            "  annotations/instances_train2014.json, instances_val2014.json",
            "  train2014/COCO_train2014_000000000009.jpg, val2014/...",
        ),
    ),
    CatalogueEntry(
        key="pascal-voc",
        title="Pascal VOC 2007 (and 2012)",
        domain="photo",
        task="object presence (multi-label)",
        classes=20,
        sizes=Sizes(9_963, 2_501, 2_510, 4_952),
        metric="AUROC; detection",
        mean=(0.4511, 0.4292, 0.3967),
        std=(0.2764, 0.2729, 0.2849),
        split="test of 2007 is held out; the rest is trainval of 2007 and 2012, as in the reference code",
        source="https://thor.robots.ox.ac.uk/pascal/VOC",
        licence="images from flickr, under flickr's terms of use",
        layout=(
            "DIR/ (VOCdevkit)",
            "  VOC2007/ImageSets/Main/trainval.txt, test.txt     test comes in an archive of its own",
            "  VOC2007/JPEGImages/000001.jpg, VOC2007/Annotations/000001.xml",
            "  VOC2012/...     optional: its trainval is added",
        ),
        note="An object counts as present also where it is marked as difficult. Sizes are those of 2007.",
    ),
    CatalogueEntry(
        key="flowers-102",
        title="Oxford 102 Flowers",
        domain="photo",
        task="classification",
        classes=102,
        sizes=Sizes(8_189, 1_020, 1_020, 6_149),
        metric="accuracy",
        mean=(0.4355, 0.3777, 0.2880),
        std=(0.2970, 0.2459, 0.2705),
        split="trnid, valid and tstid of setid.mat; tstid is held out",
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        licence=None,
        layout=("DIR/", "  jpg/image_00001.jpg ... image_08189.jpg", "  imagelabels.mat, setid.mat"),
        note="The files number the classes from 1 to 102 and do not name them.",
    ),
    CatalogueEntry(
        key="chexpert",
        title="CheXpert",
        domain="medical",
        task="5 findings (multi-label)",
        classes=5,
        sizes=Sizes(224_316, 223_414, 234, 668),
        metric="AUROC",
        mean=(0.5028, 0.5028, 0.5028),
        std=(0.2919, 0.2919, 0.2919),
        split="train.csv, and valid.csv of 200 studies, which is held out as test; images of one patient stay together",
        source="https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2 (after agreeing "
        "to its terms)",
        licence="Stanford University School of Medicine CheXpert Dataset Research Use Agreement: personal, "
        "non-commercial research; not to be passed on",
        layout=(
            "DIR/ (CheXpert-v1.0 or CheXpert-v1.0-small)",
            "  train.csv, valid.csv     column Path: CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg",
            "  train/patient00001/study1/view1_frontal.jpg, valid/...",
            "or, of the full size, DIR/ with what its four archives unpack to, all side by side",
            "  CheXpert-v1.0 batch 1 (validate & csv)/train.csv, valid.csv, valid/...",
            "  CheXpert-v1.0 batch 2 (train 1)/patient00001/..., CheXpert-v1.0 batch 3 (train 2)/..., "
            "CheXpert-v1.0 batch 4 (train 3)/...",
        ),
        note="Blank, 0 and -1 (uncertain) count as 0, as in the reference code. All 14 findings: csv:DIR/train.csv. "
        "Lateral views are included (train: 191,027 frontal, 32,387 lateral). The 668 images of test are not opened.",
    ),
    CatalogueEntry(
        key="chest-xray-kids",
        title="Chest X-ray kids (Kermany et al., pneumonia)",
        domain="medical",
        task="classification",
        classes=2,
        sizes=Sizes(5_856, 5_216, 16, 624),
        metric="accuracy",
        mean=(0.4815, 0.4815, 0.4815),
        std=(0.2377, 0.2377, 0.2377),
        split="test is held out; train and val of Kaggle's copy, of which Mendeley's makes one folder, are the rest",
        source="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        licence="CC BY 4.0",
        layout=(
            "DIR/ (chest_xray, CellData/chest_xray)",
            "  train/NORMAL/*.jpeg, train/PNEUMONIA/*.jpeg, test/...",
            "  val/...     optional, joins train",
        ),
        note="Children are told apart by the file's name (person12_virus_34.jpeg, VIRUS-1234567-0001.jpeg) and stay "
        "together in a split. Kaggle's copy numbers bacteria and virus each on its own, in one run through train and "
        "test. The num_classes=10 of the reference code's chest_xray_kids.sh is left over from a template; 2 is right.",
    ),
)
BY_KEY = {entry.key: entry for entry in ENTRIES}


def catalogue_entry(name: str) -> CatalogueEntry:
    """The entry of a dataset.

    Raises:
        HptError: the paper has no such dataset.
    """
    if name in BY_KEY:
        return BY_KEY[name]
    close = difflib.get_close_matches(name, BY_KEY, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise HptError(f"data: the paper has no dataset {name!r}; {hint}there are {', '.join(BY_KEY)}")
