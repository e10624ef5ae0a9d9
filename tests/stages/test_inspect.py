import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow_runs import store_for_copies
from PIL import Image
from scenes import scene

import hpt_mlflow
from hpt_mlflow.cli import hpt
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


def picture(seed):
    return Image.fromarray(scene(seed, 80))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets; in `new` are a blank image, an unreadable one, a copy within, and copies of test images of `old`."""
    root = tmp_path_factory.mktemp("my sets")
    for part, numbers in (("train", range(20)), ("test", range(20, 30))):
        for i in numbers:
            file = root / "old" / part / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(i).save(file)
    (root / "new").mkdir()
    for i in range(50, 60):
        picture(i).save(root / "new" / f"{i}.jpg", quality=95)
    picture(50).resize((40, 40)).save(root / "new" / "small.png")
    picture(21).save(root / "new" / "leak.jpg", quality=40)
    picture(22).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "new" / "mirror.png")
    Image.new("RGB", (30, 30), "white").save(root / "new" / "blank.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "new" / "deep.png")
    (root / "new" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    return root


@pytest.fixture(scope="module")
def inspected(sets, empty_database, tmp_path_factory):
    """The result of the command, its page and its list."""
    folder = tmp_path_factory.mktemp("inspected")
    with store_for_copies(folder, empty_database):
        result = hpt_mlflow.inspect(
            data=f"'{sets}/old' '{sets}/new'", page=f"{folder}/page.html", list_to=f"{folder}/list.txt"
        )
        yield result, Path(f"{folder}/page.html").read_text(), folder / "list.txt"


def test_everything_is_counted(inspected):
    result, _, _ = inspected
    assert result.metrics == {
        "inspect/images": 46,
        "inspect/left_out": 0,
        "inspect/unreadable": 1,
        "inspect/blank": 2,
        "inspect/saturated": 0,
        "inspect/near_copies": 3,
        "inspect/test_images_with_a_near_copy": 2,
        "inspect/listed": 30,
    }
    assert mlflow.get_run(result.run_id).data.metrics == result.metrics


def test_the_page_shows_each_finding_and_needs_nothing_else(inspected):
    _, page, _ = inspected
    for text in ("test part of old and what is trained on in new".capitalize(), "Within new: 1 pair", "broken.png"):
        assert text in page
    for text in ("leak.jpg", "mirrored, ", "small.png", "blank.png", "PNG I;16 16 bits", "JPEG RGB 8 bits"):
        assert text in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count("data:image/webp;base64,") == 2 * 3 + 2


def test_the_page_and_the_pairs_are_artifacts_of_the_run(inspected):
    result, page, _ = inspected
    assert mlflow.artifacts.load_text(f"runs:/{result.run_id}/inspection.html") == page
    table = json.loads(mlflow.artifacts.load_text(f"runs:/{result.run_id}/near_copies.json"))
    assert len(table["data"]) == 3
    assert mlflow.get_run(result.run_id).data.tags["hpt.stage"] == "inspect"


def test_the_list_has_no_test_images_no_copies_and_nothing_blank(inspected, sets):
    _, _, file = inspected
    names = {Path(line).relative_to(sets.resolve()).as_posix() for line in file.read_text().splitlines()}
    expected = {f"old/train/{'ab'[i % 2]}/{i}.png" for i in range(20)} | {f"new/{i}.jpg" for i in range(50, 60)}
    assert names == expected
    assert len(open_dataset(f"list:{file}")) == 30


def test_the_command_takes_datasets_as_words(sets, store):
    arguments = ["inspect", f"{sets}/old", f"{sets}/new", "--near", "false"]
    done = CliRunner().invoke(hpt, arguments)
    assert done.exit_code == 0, done.output
    assert re.search(r"inspect: run \w+ \(old > new\)", done.output)
    assert "near_copies" not in done.output
    refused = CliRunner().invoke(hpt, [*arguments, "--data", f"{sets}/old"])
    assert refused.exit_code != 0
    assert "both given" in refused.output


def test_the_page_is_there_though_the_server_is_not(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        done = CliRunner().invoke(hpt, ["inspect", f"{sets}/new", "--near", "false", "--page", f"{tmp_path}/page.html"])
    finally:
        mlflow.set_tracking_uri(before)
    assert done.exit_code != 0
    assert "broken.png" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "builtin:digits", "list_to": "list.txt"}, "list_to: images of builtin:digits are not files"),
        ({"data": "builtin:digits", "page": "/nowhere/page.html"}, "page: there is no folder for /nowhere/page.html"),
        ({"data": "'open"}, "data: .* close the quote"),
        ({"data": "/nowhere"}, "data: there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(settings, words):
    with pytest.raises(HptError, match=words):
        hpt_mlflow.inspect(**settings)


def test_a_list_names_the_pages_of_a_file(store, tmp_path):
    pages = [picture(seed) for seed in range(4)]
    (tmp_path / "scans").mkdir()
    pages[0].save(tmp_path / "scans" / "scan.tif", save_all=True, append_images=[*pages[1:], pages[0]])
    hpt_mlflow.inspect(data=f"{tmp_path}/scans", list_to=f"{tmp_path}/list.txt")
    assert (tmp_path / "list.txt").read_text().splitlines() == [f"{tmp_path}/scans/scan.tif#{i}" for i in range(4)]
    assert len(open_dataset(f"list:{tmp_path}/list.txt")) == 4
