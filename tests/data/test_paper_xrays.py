"""X-ray datasets of the paper, on small folders of the layouts that they unpack to."""

import shutil

import pytest
from paper_checks import assert_refused, classes_of, held_out, labels_of, opened, together

CHEXPERT_COLUMNS = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


CHEXPERT_IMAGES = {
    "train": [
        "patient00001/study1/view1_frontal.jpg",
        "patient00001/study2/view1_frontal.jpg",
        "patient00002/study1/view1_frontal.jpg",
    ],
    "valid": ["patient64541/study1/view1_frontal.jpg"],
}
# No Finding, Enlarged C., Cardiomegaly, Lung O., Lung L., Edema, Consolidation, Pneumonia, Atelectasis, ...
CHEXPERT_VALUES = {
    "train": ["1.0,,,,,,,,,0.0,,,,1.0", ",,1.0,1.0,,-1.0,0.0,,1.0,,,,,", ",,,-1.0,,1.0,1.0,,-1.0,,1.0,,1.0,"],
    "valid": ["0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0"],
}
# The archives of the full size, as each unpacks.
BATCHES = [
    "CheXpert-v1.0 batch 1 (validate & csv)",
    "CheXpert-v1.0 batch 2 (train 1)",
    "CheXpert-v1.0 batch 3 (train 2)",
    "CheXpert-v1.0 batch 4 (train 3)",
]


def chexpert_table(part, top):
    rows = zip(CHEXPERT_IMAGES[part], CHEXPERT_VALUES[part], strict=True)
    return "\n".join([CHEXPERT_COLUMNS] + [f"{top}/{part}/{path},Female,68,Frontal,AP,{v}" for path, v in rows])


@pytest.fixture
def chexpert(unpacked):
    images = [f"{part}/{path}" for part, paths in CHEXPERT_IMAGES.items() for path in paths]
    return unpacked(images, {f"{part}.csv": chexpert_table(part, "CheXpert-v1.0-small") for part in CHEXPERT_IMAGES})


@pytest.fixture
def chexpert_batches(unpacked):
    places = {"patient00001": BATCHES[1], "patient00002": BATCHES[3], "patient64541": f"{BATCHES[0]}/valid"}
    images = [f"{places[path.split('/')[0]]}/{path}" for paths in CHEXPERT_IMAGES.values() for path in paths]
    tables = {f"{BATCHES[0]}/{part}.csv": chexpert_table(part, "CheXpert-v1.0") for part in CHEXPERT_IMAGES}
    return unpacked([*images, f"{BATCHES[2]}/patient30000/study1/view1_frontal.jpg"], tables)


@pytest.fixture
def kids(unpacked):
    return unpacked(
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


def test_chexpert_has_five_labels_and_keeps_patients_together(chexpert):
    dataset = opened("chexpert", chexpert)
    assert dataset.classes == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert labels_of(dataset) == {
        "train/patient00001/study1/view1_frontal.jpg": set(),
        "train/patient00001/study2/view1_frontal.jpg": {"Cardiomegaly", "Atelectasis"},
        "train/patient00002/study1/view1_frontal.jpg": {"Edema", "Consolidation", "Pleural Effusion"},
        "valid/patient64541/study1/view1_frontal.jpg": {"Cardiomegaly", "Pleural Effusion"},
    }
    assert held_out(dataset) == {"valid/patient64541/study1/view1_frontal.jpg"}
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
    assert_refused("chexpert", chexpert, "CheXpert as it unpacks", "stanfordaimi")


def test_chexpert_opens_as_its_four_archives_unpack(chexpert_batches):
    dataset = opened("chexpert", chexpert_batches)
    assert labels_of(dataset) == {
        f"{BATCHES[1]}/patient00001/study1/view1_frontal.jpg": set(),
        f"{BATCHES[1]}/patient00001/study2/view1_frontal.jpg": {"Cardiomegaly", "Atelectasis"},
        f"{BATCHES[3]}/patient00002/study1/view1_frontal.jpg": {"Edema", "Consolidation", "Pleural Effusion"},
        f"{BATCHES[0]}/valid/patient64541/study1/view1_frontal.jpg": {"Cardiomegaly", "Pleural Effusion"},
    }
    assert held_out(dataset) == {f"{BATCHES[0]}/valid/patient64541/study1/view1_frontal.jpg"}
    assert {f"{BATCHES[1]}/patient00001/study{i}/view1_frontal.jpg" for i in (1, 2)} in together(dataset)


def test_chexpert_names_an_archive_that_is_not_unpacked(chexpert_batches):
    shutil.rmtree(chexpert_batches / BATCHES[3])
    assert_refused("chexpert", chexpert_batches, f"{BATCHES[3]} is missing")


def test_chexpert_refuses_a_patient_whom_no_archive_has(chexpert_batches):
    shutil.rmtree(chexpert_batches / BATCHES[3] / "patient00002")
    assert_refused("chexpert", chexpert_batches, "patient00002")


def test_chexpert_without_the_images_of_train_is_refused(chexpert_batches):
    assert_refused("chexpert", chexpert_batches / BATCHES[0], "train/patient00001/study1/view1_frontal.jpg is missing")


def test_kids_are_told_apart_by_the_names_of_files(kids):
    dataset = opened("chest-xray-kids", kids)
    assert classes_of(dataset) == {name: name.split("/")[1] for name in dataset.names}
    assert len(dataset) == 8
    assert dataset.classes == ("NORMAL", "PNEUMONIA")
    assert held_out(dataset) == {"test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg"}
    assert {names for names in together(dataset) if len(names) > 1} == {
        frozenset({"train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg"}),
        frozenset({"train/PNEUMONIA/person12_virus_3.jpeg", "val/PNEUMONIA/person12_virus_4.jpeg"}),
    }


def test_kids_of_one_number_and_kind_are_one_child_in_train_and_test(unpacked):
    root = unpacked(
        [
            "train/NORMAL/IM-0115-0001.jpeg",
            "train/PNEUMONIA/person80_virus_150.jpeg",
            "train/PNEUMONIA/person80_bacteria_389.jpeg",
            "test/NORMAL/IM-0001-0001.jpeg",
            "test/PNEUMONIA/person80_bacteria_390.jpeg",
        ]
    )
    shared = {names for names in together(opened("chest-xray-kids", root)) if len(names) > 1}
    assert shared == {
        frozenset({"train/PNEUMONIA/person80_bacteria_389.jpeg", "test/PNEUMONIA/person80_bacteria_390.jpeg"})
    }


@pytest.mark.parametrize("outer", ["chest_xray", "CellData/chest_xray", "ZhangLabData/CellData/chest_xray"])
def test_kids_in_the_folders_that_archives_unpack_to(kids, tmp_path, outer):
    before = opened("chest-xray-kids", kids).digest
    (tmp_path / "archive" / outer).parent.mkdir(parents=True)
    shutil.move(kids, tmp_path / "archive" / outer)
    assert opened("chest-xray-kids", tmp_path / "archive").digest == before


def test_kids_of_mendeley_have_one_number_each(unpacked):
    root = unpacked(
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
