import os

import pytest

from hpt_mlflow.data.account import MOST_EXAMPLES
from hpt_mlflow.data.formats import registry
from hpt_mlflow.data.tree import look_through
from hpt_mlflow.errors import HptError


@pytest.fixture
def account(unpacked):
    """What is found in a folder with an image a/1.png, these other images, and files of these contents."""

    def look(*images, **files):
        folder = unpacked(["a/1.png", *images])
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        tree = look_through(folder)
        return list(tree.names), {entry.what: (entry.count, entry.examples) for entry in tree.left_out}

    return look


def test_a_plain_folder_leaves_nothing_out(account):
    assert account("b/1.jpg", **{"labels.csv": b"a,b", "b/notes.txt": b"x", ".hidden.heic": b""}) == (
        ["a/1.png", "b/1.jpg"],
        {},
    )


@pytest.mark.parametrize(
    "folder", ["@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX", "System Volume Information", "lost+found"]
)
def test_folders_of_systems_are_left_out_wherever_they_are(account, folder):
    names, left_out = account(f"{folder}/1.png", f"a/{folder}/1.png/THUMB.jpg")
    assert names == ["a/1.png"]
    assert left_out == {"folders of a system or tool": (2, (folder, f"a/{folder}"))}


def test_what_mlflow_writes_is_left_out_wherever_it_lies(account):
    run = "0123456789abcdef" * 2
    names, left_out = account(
        f"mlruns/0/{run}/artifacts/views.png", f"out/1/{run}/artifacts/map.png", "a/mlartifacts/1.png", f"{run}/1.png"
    )
    # The last is a folder like any other.
    assert names == [f"{run}/1.png", "a/1.png"]
    assert left_out == {"folders of MLflow's outputs": (3, ("a/mlartifacts/", "mlruns/", f"out/1/{run}/"))}


@pytest.mark.parametrize("mark", ["MLmodel", "CACHEDIR.TAG", "pyvenv.cfg", "conda-meta/history"])
def test_models_caches_and_environments_are_left_out(account, mark):
    names, left_out = account("b/deep/1.png", **{f"b/{mark}": b""})
    assert names == ["a/1.png"]
    assert left_out == {"folders of outputs, caches or environments": (1, ("b/",))}


def test_the_folder_that_the_user_names_is_data_whatever_it_is_called(unpacked):
    folder = unpacked(["mlruns/a/1.png", "mlruns/CACHEDIR.TAG.png"], {"mlruns/MLmodel": ""})
    assert list(look_through(folder / "mlruns").names) == ["CACHEDIR.TAG.png", "a/1.png"]


def test_pictures_that_are_not_read_are_counted_by_kind(account):
    files = {f"b/IMG_{i}.JXL": b"" for i in range(7)} | {"slide.svs": b"", "more.zip": b"", "features.npy": b""}
    names, left_out = account(**files)
    assert names == ["a/1.png"]
    assert {what: count for what, (count, _) in left_out.items()} == {
        "files .jxl": 7,
        "files .svs": 1,
        "files .zip": 1,
        "files .npy": 1,
    }
    examples = left_out["files .jxl"][1]
    assert len(examples) == MOST_EXAMPLES
    assert set(examples) < files.keys()


def test_what_holds_many_images_is_left_out_with_the_address_that_reads_it(unpacked):
    folder = unpacked(["a/1.png"])
    for name in ("train-0.tar", "more.zip", "table.parquet", "film.mp4"):
        (folder / name).write_bytes(b"")
    reasons = {entry.what.removeprefix("files "): entry.why for entry in look_through(folder).left_out}
    assert "shards:" in reasons[".tar"]
    assert "zip:" in reasons[".zip"]
    assert "parquet:" in reasons[".parquet"]
    assert "convert" in reasons[".mp4"]


@pytest.mark.parametrize(
    "start",
    [
        *(b"\xff\xd8\xff\xe0", b"\x89PNG\r\n", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF0000WEBP", b"0000ftypheic"),
    ],
)
def test_a_file_that_starts_as_a_picture_is_counted_whatever_its_suffix(account, start):
    _, left_out = account(**{"b/1": start, "b/2": start, "b/3.photo": start})
    assert {what: count for what, (count, _) in left_out.items()} == {"files without a suffix": 2, "files .photo": 1}


def test_without_pydicom_dicom_files_are_left_out_with_what_reads_them(unpacked, monkeypatch):
    monkeypatch.setattr(registry, "missing", lambda name: "pip install x" if name == "DICOM" else "")
    folder = unpacked(["a/1.png"])
    (folder / "b").write_bytes(bytes(128) + b"DICM")
    (folder / "c.dcm").write_bytes(b"")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    tree = look_through(folder)
    assert list(tree.names) == ["a/1.png"]
    reasons = {entry.what: entry.why for entry in tree.left_out}
    assert reasons.pop("files without a suffix") == reasons.pop("files .dcm") == "pip install x reads them"


def test_files_of_studies_are_images_without_a_suffix_or_with_a_number(unpacked):
    folder = unpacked(["a/1.png"])
    for name in ("IM0001", "1.2.840.17", "notes.txt.gz", "DICOMDIR"):
        (folder / name).write_bytes(bytes(128) + b"DICM")
    assert list(look_through(folder).names) == ["1.2.840.17", "IM0001", "a/1.png"]


def test_a_pipe_is_not_opened_to_see_what_is_in_it(unpacked):
    folder = unpacked(["a/1.png"])
    os.mkfifo(folder / "pipe")
    assert look_through(folder).left_out == []


def test_many_files_numbered_by_their_suffix_are_not_all_opened(account, monkeypatch):
    opened = []
    monkeypatch.setattr("hpt_mlflow.data.tree.Disk.start", lambda disk, entry: opened.append(entry.name) or b"")
    account(**{f"b/simulation.{i:04}": b"x" for i in range(300)})
    assert len(opened) == 100


def test_names_come_in_runs_of_their_folders(unpacked):
    tree = look_through(unpacked(["1.png", "a/1.png", "a/b/1.png", "a/c.png", "z.png"]))
    assert tree.names == ["1.png", "a/1.png", "a/b/1.png", "a/c.png", "z.png"]
    assert tree.runs == [("", 1), ("a/", 1), ("a/b/", 1), ("a/", 1), ("", 1)]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HptError, match="cannot list"):
        look_through(tmp_path / "nowhere")
