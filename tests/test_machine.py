from pathlib import Path

import pytest
import torch

from hpt_mlflow.machine import machine, processor

CPUINFO = """processor\t: 0
model name\t: Fast 9000
flags\t\t: fpu avx2 avx512fx avx512_bf16
processor\t: 1
model name\t: Other
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Stands in for the file of the kernel."""
    real = Path.read_text
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(Path, "read_text", lambda self: real(file if str(self) == "/proc/cpuinfo" else self))
    return file


def test_a_processor_is_named_with_what_it_can_do(cpuinfo):
    cpuinfo.write_text(CPUINFO)
    assert processor() == "Fast 9000 (avx2, avx512_bf16)"


def test_a_system_that_says_nothing_of_it_names_what_python_knows(cpuinfo, monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert processor() == "arm"


def test_a_machine_is_its_processor_and_the_cores_that_may_be_used(cpuinfo, monkeypatch):
    cpuinfo.write_text(CPUINFO)
    monkeypatch.setattr("hpt_mlflow.machine.available_cores", lambda: 3)
    assert machine(torch.device("cpu")) == "Fast 9000 (avx2, avx512_bf16), 3 cores"


def test_a_machine_with_a_gpu_is_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert machine(torch.device("cuda:1")) == "GPU of cuda:1"
