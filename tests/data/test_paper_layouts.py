"""Each reader on a small folder of the layout that the dataset unpacks to."""

import json
import logging
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from hpt_mlflow.data.catalogue import BY_KEY, ENTRIES
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.paper_layouts import READERS
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError

CHEXPERT_COLUMNS = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


@pytest.fixture
def folder(tmp_path, write_image):
    """Write images and other files into a folder, and give the folder."""
    root = tmp_path / "unpacked"

    def write(images, files=()):
        for path in images:
            write_image(root / path)
        for path, content in dict(files).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content if isinstance(content, str) else json.dumps(content))
        return root

    return write


def opened(key, root):
    dataset = open_dataset(f"paper:{key}?root={root}")
    for picture in dataset.pictures:
        assert decode(picture).shape == (5, 6, 3)
    return dataset


def classes_of(dataset):
    return {name: dataset.classes[label] for name, label in zip(dataset.names, dataset.labels, strict=True)}


def labels_of(dataset):
    return {
        name: {kind for kind, has in zip(dataset.classes, row, strict=True) if has}
        for name, row in zip(dataset.names, dataset.labels, strict=True)
    }


def test_names(dataset):
    return {dataset.names[i] for i in dataset.test}


test_names.__test__ = False


def together(dataset):
    """The sets of names that are of one group."""
    names = np.array(dataset.names, dtype=object)
    return {frozenset(names[dataset.groups == group]) for group in np.unique(dataset.groups)}


def assert_refused(key, root, *words):
    with pytest.raises(HptError) as caught:
        open_dataset(f"paper:{key}?root={root}")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


@pytest.fixture
def domainnet(folder):
    return folder(
        ["sketch/ant/sketch_007_000001.jpg", "sketch/ant/sketch_007_000002.jpg", "sketch/zebra/sketch_345_000001.jpg"],
        {
            "sketch_train.txt": "sketch/ant/sketch_007_000002.jpg 6\nsketch/zebra/sketch_345_000001.jpg 344\n",
            "sketch_test.txt": "sketch/ant/sketch_007_000001.jpg 6\n",
        },
    )


def bdd_frame(name, weather):
    box = {"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}
    attributes = {"weather": weather, "scene": "highway", "timeofday": "night"}
    return {"name": name, "attributes": attributes, "labels": [box]}


@pytest.fixture
def bdd100k(folder):
    return folder(
        [f"images/100k/{name}.jpg" for name in ("train/a", "train/b", "train/c", "val/d", "test/e")],
        {
            "labels/bdd100k_labels_images_train.json": [
                bdd_frame("b.jpg", "foggy"),
                bdd_frame("a.jpg", "rainy"),
                bdd_frame("c.jpg", "undefined"),
            ],
            "labels/bdd100k_labels_images_val.json": [bdd_frame("d.jpg", "partly cloudy")],
        },
    )


def instances(part, images, things):
    """A file of COCO's instances of two categories: images by id, things as (image, category)."""
    return {
        "info": {"year": 2014},
        "images": [{"id": i, "file_name": f"COCO_{part}_{i:012}.jpg", "height": 5, "width": 6} for i in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": kind, "segmentation": [[0, 0, 1, 1]], "iscrowd": 0}
            for n, (i, kind) in enumerate(things)
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
    }


@pytest.fixture
def coco(folder):
    return folder(
        [
            "train2014/COCO_train2014_000000000009.jpg",
            "train2014/COCO_train2014_000000000025.jpg",
            "val2014/COCO_val2014_000000000042.jpg",
        ],
        {
            "annotations/instances_train2014.json": instances("train2014", [25, 9], [(9, 3), (9, 1), (9, 3)]),
            "annotations/instances_val2014.json": instances("val2014", [42], [(42, 1)]),
        },
    )


def voc_xml(*objects):
    inner = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in objects)
    return f"<annotation><folder>VOC2007</folder><size><width>6</width></size>{inner}</annotation>"


@pytest.fixture
def voc(folder):
    return folder(
        ["VOC2007/JPEGImages/000001.jpg", "VOC2007/JPEGImages/000005.jpg", "VOC2012/JPEGImages/2008_000008.jpg"],
        {
            "VOC2007/ImageSets/Main/trainval.txt": "000005\n",
            "VOC2007/ImageSets/Main/test.txt": "000001\n",
            "VOC2012/ImageSets/Main/trainval.txt": "2008_000008\n",
            "VOC2007/Annotations/000001.xml": voc_xml("dog", "person", "person"),
            "VOC2007/Annotations/000005.xml": voc_xml("chair"),
            "VOC2012/Annotations/2008_000008.xml": voc_xml("horse", "person"),
        },
    )


@pytest.fixture
def flowers(folder):
    root = folder([f"jpg/image_{i:05}.jpg" for i in range(1, 7)])
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 5, 77, 5, 77, 5]], dtype=np.uint8)})
    ids = {"trnid": [[4, 1]], "valid": [[2, 3]], "tstid": [[6, 5]]}
    savemat(root / "setid.mat", {name: np.array(values, dtype=np.uint16) for name, values in ids.items()})
    return root


@pytest.fixture
def chexpert(folder):
    paths = {
        "train": [
            "patient00001/study1/view1_frontal.jpg",
            "patient00001/study2/view1_frontal.jpg",
            "patient00002/study1/view1_frontal.jpg",
        ],
        "valid": ["patient64541/study1/view1_frontal.jpg"],
    }
    # No Finding, Enlarged C., Cardiomegaly, Lung O., Lung L., Edema, Consolidation, Pneumonia, Atelectasis, ...
    values = {
        "train": ["1.0,,,,,,,,,0.0,,,,1.0", ",,1.0,1.0,,-1.0,0.0,,1.0,,,,,", ",,,-1.0,,1.0,1.0,,-1.0,,1.0,,1.0,"],
        "valid": ["0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0"],
    }
    tables = {
        f"{part}.csv": "\n".join(
            [CHEXPERT_COLUMNS]
            + [
                f"CheXpert-v1.0-small/{part}/{p},Female,68,Frontal,AP,{v}"
                for p, v in zip(paths[part], values[part], strict=True)
            ]
        )
        for part in paths
    }
    return folder([f"{part}/{path}" for part in paths for path in paths[part]], tables)


@pytest.fixture
def kids(folder):
    return folder(
        [
            "train/NORMAL/IM-0115-0001.jpeg",
            "train/NORMAL/NORMAL2-IM-0115-0001.jpeg",
            "train/PNEUMONIA/person1_bacteria_1.jpeg",
            "train/PNEUMONIA/person1_bacteria_2.jpeg",
            "train/PNEUMONIA/person12_virus_3.jpeg",
            "val/PNEUMONIA/person12_virus_4.jpeg",
            "test/NORMAL/IM-0001-0001.jpeg",
            "test/PNEUMONIA/person1_virus_6.jpeg",
        ]
    )


@pytest.fixture
def viper(folder):
    return folder(
        [f"train/img/{name}.jpg" for name in ("000/000_00001", "000/000_00002", "001/001_00001")]
        + ["val/img/000/000_00001.jpg", "test/img/002/002_00001.jpg"]
    )


@pytest.fixture
def xview(folder):
    things = [("10.tif", 73), ("10.tif", 18), ("10.tif", 73), ("1395.tif", 11), ("20.tif", 75)]
    features = [
        {"type": "Feature", "geometry": {}, "properties": {"image_id": i, "type_id": t, "bounds_imcoords": "1,2,3,4"}}
        for i, t in things
    ]
    return folder(
        ["train_images/10.tif", "train_images/20.tif", "val_images/30.tif"],
        {"xView_train.geojson": {"type": "FeatureCollection", "features": features}},
    )


def test_every_dataset_of_the_catalogue_has_a_reader():
    assert set(READERS) == {entry.key for entry in ENTRIES}


def test_domainnet_is_read_by_its_lists(domainnet):
    dataset = opened("domainnet-sketch", domainnet)
    assert classes_of(dataset) == {
        "sketch/ant/sketch_007_000001.jpg": "ant",
        "sketch/ant/sketch_007_000002.jpg": "ant",
        "sketch/zebra/sketch_345_000001.jpg": "zebra",
    }
    assert dataset.classes == ("ant", "zebra")
    assert dataset.labels.dtype == np.int64
    assert test_names(dataset) == {"sketch/ant/sketch_007_000001.jpg"}
    assert dataset.name == "domainnet-sketch"


def test_domainnet_of_another_domain_is_not_there(domainnet):
    assert_refused("domainnet-real", domainnet, "real is missing", "ai.bu.edu/M3SDA")


@pytest.mark.parametrize(
    "line",
    ["sketch/ant/x.jpg", "sketch/ant/x.jpg six", "/etc/ant/x.jpg 6", "sketch/../x.jpg 6", "sketch/ant/x.jpg 344"],
)
def test_domainnet_refuses_a_line_that_is_none_of_its(domainnet, line):
    (domainnet / "sketch_test.txt").write_text(line)
    assert_refused("domainnet-sketch", domainnet, "sketch_test.txt")


def test_resisc45_is_folders_of_classes(folder):
    root = folder(["sea_ice/sea_ice_001.jpg", "airport/airport_700.jpg"])
    dataset = opened("resisc45", root)
    assert classes_of(dataset) == {"airport/airport_700.jpg": "airport", "sea_ice/sea_ice_001.jpg": "sea_ice"}
    assert dataset.test is None
    assert dataset.groups is None


def test_the_folder_that_an_archive_unpacks_to_may_lie_in_the_root(folder, tmp_path):
    root = folder(["NWPU-RESISC45/airport/airport_001.jpg", "NWPU-RESISC45/lake/lake_001.jpg"])
    assert classes_of(opened("resisc45", root)) == {"airport/airport_001.jpg": "airport", "lake/lake_001.jpg": "lake"}


def test_other_class_folders_are_not_resisc45(folder):
    assert_refused("resisc45", folder(["cat/1.jpg", "dog/1.jpg"]), "cat/1.jpg", "not named after its folder")


def test_uc_merced_is_folders_of_classes_in_images(folder):
    root = folder(["Images/river/river00.tif", "Images/beach/beach99.tif", "Images/beach/beach01.tif"])
    dataset = opened("uc-merced", root)
    assert classes_of(dataset) == {
        "Images/beach/beach01.tif": "beach",
        "Images/beach/beach99.tif": "beach",
        "Images/river/river00.tif": "river",
    }


def test_xview_tells_which_objects_are_in_an_image(xview):
    dataset = opened("xview", xview)
    assert labels_of(dataset) == {
        "train_images/10.tif": {"Building", "Small Car"},
        "train_images/20.tif": set(),
    }
    assert dataset.labels.dtype == np.uint8
    assert len(dataset.classes) == 60
    assert dataset.test is None


def test_bdd100k_is_read_by_the_weather(bdd100k):
    dataset = opened("bdd100k", bdd100k)
    assert classes_of(dataset) == {
        "images/100k/train/a.jpg": "rainy",
        "images/100k/train/b.jpg": "foggy",
        "images/100k/val/d.jpg": "partly cloudy",
    }
    assert len(dataset.classes) == 6
    assert test_names(dataset) == {"images/100k/val/d.jpg"}


def test_bdd100k_with_labels_of_2020(bdd100k):
    (bdd100k / "labels/det_20").mkdir()
    before = opened("bdd100k", bdd100k)
    for part in ("train", "val"):
        shutil.move(bdd100k / f"labels/bdd100k_labels_images_{part}.json", bdd100k / f"labels/det_20/det_{part}.json")
    assert opened("bdd100k", bdd100k).digest == before.digest


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "{}",
        "[3]",
        '[{"name": "a.jpg"}]',
        '[{"name": "a.jpg", "attributes": {"weather": "hail"}}]',
        '[{"name": "../a.jpg", "attributes": {"weather": "clear"}}]',
        "[" * 100000,
    ],
)
def test_bdd100k_refuses_labels_that_are_none(bdd100k, content):
    (bdd100k / "labels/bdd100k_labels_images_train.json").write_text(content)
    assert_refused("bdd100k", bdd100k, "bdd100k_labels_images_train.json")


def test_coco_tells_which_objects_are_in_an_image(coco):
    dataset = opened("coco-2014", coco)
    assert labels_of(dataset) == {
        "train2014/COCO_train2014_000000000009.jpg": {"car", "person"},
        "train2014/COCO_train2014_000000000025.jpg": set(),
        "val2014/COCO_val2014_000000000042.jpg": {"person"},
    }
    assert dataset.classes == ("person", "car")
    assert test_names(dataset) == {"val2014/COCO_val2014_000000000042.jpg"}


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_coco_refuses_a_file_that_lacks_a_list(coco, key):
    file = coco / "annotations/instances_train2014.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
    assert_refused("coco-2014", coco, "instances_train2014.json", key)


def test_coco_refuses_an_object_of_no_image(coco):
    file = coco / "annotations/instances_train2014.json"
    file.write_text(json.dumps(instances("train2014", [9], [(10, 1)])))
    assert_refused("coco-2014", coco, "instances_train2014.json", "10")


def test_voc_tells_which_objects_are_in_an_image(voc):
    dataset = opened("pascal-voc", voc)
    assert labels_of(dataset) == {
        "VOC2007/JPEGImages/000001.jpg": {"dog", "person"},
        "VOC2007/JPEGImages/000005.jpg": {"chair"},
        "VOC2012/JPEGImages/2008_000008.jpg": {"horse", "person"},
    }
    assert test_names(dataset) == {"VOC2007/JPEGImages/000001.jpg"}


def test_voc_without_2012_and_without_the_test_archive(voc):
    shutil.rmtree(voc / "VOC2012")
    (voc / "VOC2007/ImageSets/Main/test.txt").unlink()
    dataset = opened("pascal-voc", voc)
    assert labels_of(dataset) == {"VOC2007/JPEGImages/000005.jpg": {"chair"}}
    assert dataset.test is None


@pytest.mark.parametrize(
    "content",
    ["<annotation>", voc_xml("dragon"), "", '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'],
)
def test_voc_refuses_annotations_that_are_none(voc, content):
    (voc / "VOC2007/Annotations/000005.xml").write_text(content)
    assert_refused("pascal-voc", voc, "000005.xml")


def test_voc_refuses_an_image_elsewhere(voc):
    (voc / "VOC2007/ImageSets/Main/trainval.txt").write_text("../../secret")
    assert_refused("pascal-voc", voc, "../../secret")


def test_flowers_are_read_from_their_arrays(flowers):
    dataset = opened("flowers-102", flowers)
    assert classes_of(dataset) == {
        "jpg/image_00001.jpg": "77",
        "jpg/image_00002.jpg": "5",
        "jpg/image_00003.jpg": "77",
        "jpg/image_00004.jpg": "5",
        "jpg/image_00005.jpg": "77",
        "jpg/image_00006.jpg": "5",
    }
    assert dataset.classes == ("5", "77")
    assert test_names(dataset) == {"jpg/image_00005.jpg", "jpg/image_00006.jpg"}


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n", b"MATLAB 5.0 MAT-file" + b"\xff" * 300])
def test_flowers_refuse_a_file_that_is_not_of_matlab_5(flowers, content):
    (flowers / "imagelabels.mat").write_bytes(content)
    assert_refused("flowers-102", flowers, "imagelabels.mat")


def test_flowers_refuse_parts_beyond_the_images(flowers):
    ids = {"trnid": [[1]], "valid": [[2]], "tstid": [[9]]}
    savemat(flowers / "setid.mat", {name: np.array(values, dtype=np.uint16) for name, values in ids.items()})
    assert_refused("flowers-102", flowers, "setid.mat", "6 images")


def test_chexpert_has_five_labels_and_keeps_patients_together(chexpert):
    dataset = opened("chexpert", chexpert)
    assert dataset.classes == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert labels_of(dataset) == {
        "train/patient00001/study1/view1_frontal.jpg": set(),
        "train/patient00001/study2/view1_frontal.jpg": {"Cardiomegaly", "Atelectasis"},
        "train/patient00002/study1/view1_frontal.jpg": {"Edema", "Consolidation", "Pleural Effusion"},
        "valid/patient64541/study1/view1_frontal.jpg": {"Cardiomegaly", "Pleural Effusion"},
    }
    assert test_names(dataset) == {"valid/patient64541/study1/view1_frontal.jpg"}
    assert {len(names) for names in together(dataset)} == {1, 2}
    assert {f"train/patient00001/study{i}/view1_frontal.jpg" for i in (1, 2)} in together(dataset)


@pytest.mark.parametrize(
    "table",
    ["", "Path,Edema\nCheXpert-v1.0-small/train/patient00001/a.jpg,1.0", "\udcff"]
    + [f"{CHEXPERT_COLUMNS}\nCheXpert-v1.0-small/train/patient00001/a.jpg,Female"]
    + [f"{CHEXPERT_COLUMNS}\nC/{path},Female,68,Frontal,AP" + "," * 14 for path in ("../patient1/a.jpg", "train/a.jpg")]
    + [f"{CHEXPERT_COLUMNS}\nC/train/patient1/a.jpg,Female,68,Frontal,AP,,,2.0" + "," * 11],
)
def test_chexpert_refuses_a_table_that_is_none_of_its(chexpert, table):
    (chexpert / "train.csv").write_bytes(table.encode("utf-8", "surrogateescape"))
    assert_refused("chexpert", chexpert, "CheXpert as it unpacks", "stanfordmlgroup")


def test_kids_are_told_apart_by_the_names_of_files(kids):
    dataset = opened("chest-xray-kids", kids)
    assert classes_of(dataset) == {name: name.split("/")[1] for name in dataset.names}
    assert len(dataset) == 8
    assert dataset.classes == ("NORMAL", "PNEUMONIA")
    assert test_names(dataset) == {"test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg"}
    assert {names for names in together(dataset) if len(names) > 1} == {
        frozenset({"train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg"}),
        frozenset({"train/PNEUMONIA/person12_virus_3.jpeg", "val/PNEUMONIA/person12_virus_4.jpeg"}),
    }


def test_kids_of_mendeley_have_one_number_each(folder):
    root = folder(
        [
            "train/NORMAL/NORMAL-1003233-0001.jpeg",
            "train/PNEUMONIA/BACTERIA-30629-0001.jpeg",
            "train/PNEUMONIA/VIRUS-30629-0002.jpeg",
            "test/NORMAL/NORMAL-28501-0001.jpeg",
            "test/PNEUMONIA/VIRUS-1008087-0001.jpeg",
        ]
    )
    shared = {names for names in together(opened("chest-xray-kids", root)) if len(names) > 1}
    assert shared == {frozenset({"train/PNEUMONIA/BACTERIA-30629-0001.jpeg", "train/PNEUMONIA/VIRUS-30629-0002.jpeg"})}


def test_kids_without_a_class_are_refused(kids):
    shutil.rmtree(kids / "test/NORMAL")
    assert_refused("chest-xray-kids", kids, "test/NORMAL is missing", "mendeley")


def test_viper_without_lists_has_no_labels(viper):
    dataset = opened("viper", viper)
    assert len(dataset) == 5
    assert dataset.labels is None
    assert test_names(dataset) == {"test/img/002/002_00001.jpg"}
    assert {"train/img/000/000_00001.jpg", "train/img/000/000_00002.jpg"} in together(dataset)
    assert len(together(dataset)) == 4


def test_viper_with_lists_has_the_weather(viper):
    lists = {"train": "train/img/000/000_00001.jpg 5\ntrain/img/001/001_00001.jpg 0\n"}
    lists |= {"val": "val/img/000/000_00001.jpg 5\n", "test": "test/img/002/002_00001.jpg 0\n"}
    (viper / "meta").mkdir()
    for part, text in lists.items():
        (viper / f"meta/{part}_weather.txt").write_text(text)
    dataset = opened("viper", viper)
    assert classes_of(dataset) == {
        "train/img/000/000_00001.jpg": "5",
        "train/img/001/001_00001.jpg": "0",
        "val/img/000/000_00001.jpg": "5",
        "test/img/002/002_00001.jpg": "0",
    }
    assert test_names(dataset) == {"test/img/002/002_00001.jpg"}


@pytest.mark.parametrize("key", BY_KEY)
def test_a_folder_that_is_missing_or_empty_is_refused(key, tmp_path):
    assert_refused(key, tmp_path / "nowhere", "no folder", tmp_path / "nowhere", BY_KEY[key].source)
    assert_refused(key, tmp_path, BY_KEY[key].title, f"hpt datasets {key}", BY_KEY[key].source)


@pytest.mark.parametrize("key", BY_KEY)
def test_a_folder_of_other_images_is_refused(key, folder):
    assert_refused(key, folder(["cats/1.png", "dogs/1.png", "3.png"]), BY_KEY[key].title)


def test_images_that_are_not_there_are_refused(domainnet):
    shutil.rmtree(domainnet / "sketch")
    (domainnet / "sketch").mkdir()
    assert_refused("domainnet-sketch", domainnet, "sketch/ant/sketch_007_000002.jpg is missing")


def test_a_small_part_of_a_dataset_is_warned_of(domainnet, caplog):
    with caplog.at_level(logging.WARNING, "hpt_mlflow"):
        opened("domainnet-sketch", domainnet)
    assert "3 images of 69128" in caplog.text


def test_the_address_opens_the_dataset_again_from_elsewhere(domainnet, monkeypatch, tmp_path):
    monkeypatch.chdir(domainnet.parent)
    dataset = open_dataset("paper:domainnet-sketch?root=unpacked")
    assert dataset.uri == f"paper:domainnet-sketch?root={domainnet}"
    monkeypatch.chdir("/")
    assert open_dataset(dataset.uri).digest == dataset.digest
    assert open_dataset("paper:domainnet-sketch", root=str(domainnet)).uri == dataset.uri


def test_the_digest_changes_with_the_official_split(domainnet):
    before = opened("domainnet-sketch", domainnet)
    lists = [domainnet / f"sketch_{part}.txt" for part in ("train", "test")]
    text = "".join(file.read_text() for file in lists).splitlines(keepends=True)
    lists[0].write_text(text[0])
    lists[1].write_text("".join(text[1:]))
    after = opened("domainnet-sketch", domainnet)
    assert after.names == before.names
    assert after.digest != before.digest


def test_a_name_that_the_paper_has_not_is_refused():
    with pytest.raises(HptError, match="no dataset 'resisc'.*did you mean resisc45.*chest-xray-kids"):
        open_dataset("paper:resisc?root=/tmp")


def test_a_dataset_without_a_folder_is_refused():
    with pytest.raises(HptError, match=r"needs its folder; write paper:resisc45\?root=DIR"):
        open_dataset("paper:resisc45")
