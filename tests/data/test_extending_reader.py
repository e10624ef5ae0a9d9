"""The dataset reader of docs/extending.md, added from outside the package."""

import importlib
import re
import subprocess
import sys

import numpy as np
import pytest

from hpt_mlflow.data import sources
from hpt_mlflow.data.sources import open_dataset, register_source
from hpt_mlflow.errors import HptError


@pytest.fixture
def open_npz(examples):
    return importlib.import_module("my_package.reader").open_npz


@pytest.fixture
def file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(20) % 2 + 5)
    return tmp_path / "some.npz"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))


def test_a_registered_reader_opens_its_scheme(file, open_npz):
    register_source("npz", open_npz)
    dataset = open_dataset("npz:some.npz", str(file.parent))
    assert (len(dataset), dataset.classes, dataset.uri) == (20, ("5", "6"), f"npz:{file}")
    assert len(dataset.split(0).test) == 4
    assert open_dataset(dataset.uri).digest == dataset.digest
    with pytest.raises(HptError, match="^data: there is no file .*; write npz:FILE$"):
        open_dataset("npz:other.npz")


@pytest.mark.parametrize("scheme", ["", "n", "npz:"])
def test_a_scheme_has_letters_and_no_colon(scheme, open_npz):
    with pytest.raises(ValueError, match="is not a scheme"):
        register_source(scheme, open_npz)


def test_an_unknown_scheme_is_refused_with_all_that_there_are(open_npz):
    register_source("npz", open_npz)
    with pytest.raises(HptError, match=r"^data: unknown kind of dataset 'zarr' in 'zarr:x'; use folder:, .*npz:$"):
        open_dataset("zarr:x")


def test_an_installed_package_adds_a_reader_by_an_entry_point(tmp_path, file):
    (tmp_path / "npz_reader.py").write_text(
        "from hpt_mlflow.data.sources import open_dataset\n"
        "def opener(rest, root):\n    return open_dataset('builtin:' + rest)\n"
    )
    info = tmp_path / "npz_reader-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: npz-reader\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hpt_mlflow.sources]\nother = npz_reader:opener\n")
    code = "from hpt_mlflow.data.sources import open_dataset; print(open_dataset('other:digits').name)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert re.fullmatch(r"digits\s*", result.stdout)
