import io
import tarfile
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from refusals import assert_refused

from hpt_mlflow.data.sources import open_dataset

PATTERN = "(p[0-9]+)_"
NAMES = [f"{kind}/p{patient}_{view}.png" for kind in ("cat", "dog") for patient in range(12) for view in range(3)]


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


def write(folder, names=NAMES):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"))


def patient_of(name):
    return name.rsplit("/", 1)[1].split("_")[0]


def parts_of_patients(dataset, seed=0):
    split, parts = dataset.split(seed), defaultdict(set)
    for part in ("train", "validation", "test"):
        for i in getattr(split, part):
            parts[patient_of(dataset.names[i])].add(part)
    return parts


def assert_kept_together(dataset):
    assert len(set(dataset.groups.tolist())) == 12
    for seed in range(3):
        parts = parts_of_patients(dataset, seed)
        assert len(parts) == 12
        assert all(len(where) == 1 for where in parts.values())
        assert set().union(*parts.values()) == {"train", "validation", "test"}


def test_without_groups_patients_are_divided(images):
    assert any(len(where) > 1 for where in parts_of_patients(open_dataset(str(images))).values())


def test_a_pattern_keeps_the_patients_of_a_folder_together(images):
    dataset = open_dataset(f"{images}?group={PATTERN}")
    assert_kept_together(dataset)
    assert dataset.classes == ("cat", "dog")


def test_a_pattern_keeps_those_of_a_list_together(images, tmp_path):
    (tmp_path / "all.txt").write_text("".join(f"{images}/{name}\t{name[:3]}\n" for name in NAMES))
    assert_kept_together(open_dataset(f"list:{tmp_path}/all.txt?group={PATTERN}"))


def test_a_pattern_keeps_those_of_shards_together(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i, name in list(enumerate(NAMES))[shard::2]:
                encoded = io.BytesIO()
                picture(i).save(encoded, "PNG")
                for suffix, data in ((".png", encoded.getvalue()), (".cls", name[:3].encode())):
                    member = tarfile.TarInfo(name.removesuffix(".png") + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    assert_kept_together(open_dataset(f"shards:{tmp_path}/?.tar?group={PATTERN}"))


@pytest.mark.parametrize("group", ["site", PATTERN, "file"])
def test_a_column_a_pattern_or_a_file_keeps_those_of_a_table_together(images, tmp_path, group):
    rows = "".join(f"{images}/{name},{name[:3]},{patient_of(name)}\n" for name in NAMES)
    (tmp_path / "all.csv").write_text("path,label,site\n" + rows)
    if group == "file":
        group = str(mapping(tmp_path, [f"{images}/{name}" for name in NAMES]))
    assert_kept_together(open_dataset(f"csv:{tmp_path}/all.csv?label_column=label&group={group}"))


def mapping(folder, names):
    (folder / "groups.csv").write_text("image,group\n" + "".join(f"{name},{patient_of(name)}\n" for name in names))
    return folder / "groups.csv"


def test_a_file_names_the_groups_of_a_folder(images, tmp_path):
    assert_kept_together(open_dataset(f"{images}?group={mapping(tmp_path, NAMES)}"))
    assert_kept_together(open_dataset(f"folder:{images}?group=groups.csv", root=str(tmp_path)))


def test_last_parts_of_names_do_where_they_are_different(tmp_path):
    names = [name for name in NAMES if name.startswith("cat")] + ["dog/p0_9.png", "dog/p1_9.png"]
    write(tmp_path / "images", names)
    file = mapping(tmp_path, [f"x/{name}" for name in names])
    file.write_text(file.read_text().replace("x/cat/", "").replace("x/dog/", ""))
    dataset = open_dataset(f"{tmp_path}/images?group={file}")
    assert len(set(dataset.groups.tolist())) == 12


@pytest.mark.parametrize("address", ["{0}?group=" + PATTERN, "{0}?group={1}"])
def test_the_address_of_the_dataset_opens_it_again(images, tmp_path, address):
    dataset = open_dataset(address.format(images, mapping(tmp_path, NAMES)))
    again = open_dataset(dataset.uri)
    assert again.uri == dataset.uri
    assert again.digest == dataset.digest != open_dataset(str(images)).digest


def test_a_percent_sign_is_written_as_its_code(tmp_path):
    write(tmp_path, ["a/1%x.png", "a/2%x.png", "b/1%y.png"])
    dataset = open_dataset(f"{tmp_path}?group=([0-9])%25")
    assert dataset.groups.tolist() == [0, 1, 0]
    assert open_dataset(dataset.uri).groups.tolist() == [0, 1, 0]


def test_bad_patterns_are_refused(images):
    assert_refused(f"{images}?group=(p", "'(p' is not a regular expression")
    assert_refused(f"{images}?group=patient", "'patient' is not a file", "0 groups instead of one")
    assert_refused(f"{images}?group=(p)([0-9])", "2 groups instead of one")
    assert_refused(f"{images}?group=", "names no group")
    assert_refused(f"{images}?group=(q[0-9])", "is not found in 72 of 72 names", "cat/p0_0.png")
    assert_refused(f"{images}?group=(p1.)_", "is not found in 60 of 72 names")
    assert_refused(f"{images}?group=(p)[0-9]", "all 72 images", "'p'", "at least 3")


def test_bad_files_are_refused(images, tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("image\ncat/p0_0.png\n")
    assert_refused(f"{images}?group={file}", "has no column of groups")
    mapping(tmp_path, NAMES[1:])
    assert_refused(f"{images}?group={file}", "no group of 1 of 72 images", NAMES[0])
    file.write_text("image,group\ncat/p0_0.png,\ncat/p0_1.png,p0\n")
    assert_refused(f"{images}?group={file}", "line 2", "'group'")


def test_a_column_that_the_table_lacks_is_named_with_those_it_has(images, tmp_path):
    (tmp_path / "all.csv").write_text(f"path,label\n{images}/{NAMES[0]},cat\n{images}/{NAMES[1]},dog\n")
    assert_refused(f"csv:{tmp_path}/all.csv?group=site", "no column 'site'", "path, label")


def test_a_group_in_the_given_test_part_and_outside_of_it_is_refused(tmp_path):
    write(tmp_path, [f"{part}/{kind}/p{i}_0.png" for part in ("train", "test") for kind in "ab" for i in range(3)])
    assert_refused(f"{tmp_path}?group={PATTERN}", "'p0'", "in the test part and outside of it", "train/a/p0_0.png")
