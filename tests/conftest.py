from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Kernels of GPUs then run on the processor; Triton looks when it is imported, as torchvision does.
    os.environ["TRITON_INTERPRET"] = "1"

import mlflow
import numpy as np
import pytest
from pages import write_examples
from processes import processes_end_with

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images

# Folders whose tests train, and start processes.
SLOWEST = {"faults", "stages", "training", "tuning"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files: where one of them came last, the other processes would wait for it."""
    root = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != root and not SLOWEST & set(item.path.relative_to(root).parts))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HPT_SPOOL", str(tmp_path_factory.mktemp("spool")))
    monkeypatch.setenv("HPT_PATIENCE_SECONDS", "20")


@pytest.fixture(autouse=True)
def no_process_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with processes_end_with(request.node.name.partition("[")[0], monkeypatch):
        yield


@pytest.fixture(autouse=True)
def no_registry_left_behind() -> Iterator[None]:
    """`mlflow.set_registry_uri`, which delivering calls, sets a variable of the process."""
    yield
    mlflow.set_registry_uri("")
    os.environ.pop("MLFLOW_REGISTRY_URI", None)


@pytest.fixture
def open_images() -> Callable[[Sequence[np.ndarray]], Images]:
    """Images of a data set of arrays, uint8 (height, width, 3), none of them reduced."""

    def opened(arrays: Sequence[np.ndarray]) -> Images:
        names = [str(i) for i in range(len(arrays))]
        dataset = Dataset("arrays", "test:arrays", list(arrays), names, None, ())
        return Images(dataset, np.arange(len(arrays)), smallest_side=4096)

    return opened


@pytest.fixture
def unused_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take MLflow two seconds to make."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patched:
        # Artifacts of all its copies go to where it is made.
        patched.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.search_experiments()
        mlflow.set_tracking_uri(None)
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty MLflow store of its own, sqlite with artifacts beside it; gives its address."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(None)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return uri


@pytest.fixture
def examples(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the examples of docs/extending.md be imported as my_package, without registering any."""
    folder = tmp_path_factory.mktemp("examples")
    write_examples(folder)
    monkeypatch.syspath_prepend(folder)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
