from __future__ import annotations

import warnings

import pytest
import torch

from hpt_mlflow.errors import HptError
from hpt_mlflow.settings import PretrainSettings
from hpt_mlflow.stages.processes import device as device_module
from hpt_mlflow.stages.processes.device import device_in_turn, memory_errors, resolve_device
from hpt_mlflow.stages.signature import takes


def test_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one():
    device = resolve_device("auto")
    if torch.cuda.is_available():
        assert device.type == "cuda"
    elif torch.backends.mps.is_available():
        assert device.type == "mps"
    else:
        assert device == torch.device("cpu")


def test_resolved_device_can_hold_a_tensor():
    assert torch.zeros(2, device=resolve_device("auto")).sum().item() == 0


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:x", "cuda:-1", "cpu cuda"])
def test_unknown_name_is_refused(name):
    with pytest.raises(HptError, match=r"^device: unknown device .*auto, cpu, cuda, cuda:N or mps") as caught:
        resolve_device(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["meta", "xpu"])
def test_device_that_torch_knows_but_this_package_does_not_is_refused(name):
    with pytest.raises(HptError, match=f"^device: '{name}' is not supported"):
        resolve_device(name)


def test_gpu_that_is_not_here_is_refused():
    count = torch.cuda.device_count()
    with pytest.raises(HptError, match=f"^device: cuda:{count} is not available: torch sees {count} CUDA devices"):
        resolve_device(f"cuda:{count}")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="mps is here")
def test_mps_that_is_not_here_is_refused():
    with pytest.raises(HptError, match=r"^device: mps is not available"):
        resolve_device("mps")


@pytest.mark.parametrize(
    ("device", "gpus", "nproc", "shared_out"),
    [
        ("auto", 2, 1, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 2, 1, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 2, 2, ["cuda"] * 3),
        ("cuda", 1, 1, ["cuda"] * 3),
        ("cuda:1", 2, 1, ["cuda:1"] * 3),
        ("cpu", 2, 1, ["cpu"] * 3),
        ("auto", 0, 1, ["auto"] * 3),
    ],
)
def test_trainings_side_by_side_take_gpus_in_turn(monkeypatch, device, gpus, nproc, shared_out):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert [device_in_turn(device, place, nproc) for place in range(3)] == shared_out
    # Counted by the driver, but too old for torch, for example.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device_in_turn("auto", place) for place in range(3)] == ["auto"] * 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_all_errors_of_missing_memory_are_told_in_one_line(error):
    with (
        pytest.raises(HptError, match=r"^device: no memory left on it \(CUDA .*\); free some") as caught,
        memory_errors(),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_taken_for_missing_memory():
    with pytest.raises(RuntimeError, match="size mismatch"), memory_errors():
        raise RuntimeError("size mismatch")


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch):
    monkeypatch.setattr(device_module, "_reasons", [])


@pytest.fixture
def old_driver(monkeypatch):
    """A machine whose driver is too old for torch."""

    said = []

    def is_available():
        # As torch, once.
        if said:
            return False
        said.append(True)
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update "
            "your GPU driver. (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:109.)",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)


@pytest.mark.usefixtures("old_driver")
def test_a_driver_that_is_too_old_is_told(caplog):
    resolve_device("auto")
    (warning,) = [record.getMessage() for record in caplog.records]
    reason = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."
    assert warning == f"device: no GPU is used ({reason})"
    with pytest.raises(HptError) as caught:
        resolve_device("cuda")
    assert str(caught.value) == f"device: cuda is not available: {reason}; use auto or cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_torch_cannot_use_is_refused_though_it_is_counted(monkeypatch, name):
    def is_available():
        warnings.warn("CUDA initialization: CUDA unknown error - this may be due to a setup.", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(HptError, match=f"^device: {name} is not available: CUDA unknown error - this may be"):
        resolve_device(name)


def test_a_stage_without_memory_on_its_device_says_so():
    @takes(PretrainSettings)
    def greedy(settings):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    with pytest.raises(HptError, match=r"^device: no memory left on it \(CUDA out of memory\.") as caught:
        greedy()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_where_there_is_no_gpu_nothing_is_told(caplog):
    resolve_device("auto")
    assert not caplog.records
