from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.training import precision
from hpt_mlflow.training.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_trial(monkeypatch):
    monkeypatch.setattr(precision, "TRIAL_SECONDS", 0.05)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resolve(name: str, backbone: nn.Module) -> str:
    return resolve_precision(name, backbone, image_size=8, batch_size=4, device=CPU)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_named_precision_is_taken(name, backbone):
    assert resolve(name, backbone) == name


def test_float16_needs_a_gpu(backbone):
    with pytest.raises(HptError, match=r"^precision: float16 .* cpu") as caught:
        resolve("float16", backbone)
    assert "\n" not in str(caught.value)


def test_auto_is_float32_where_bfloat16_is_emulated(backbone, monkeypatch):
    monkeypatch.setattr(precision, "_has_native_bfloat16", lambda device: False)
    assert resolve("auto", backbone) == "float32"


def test_auto_chooses_by_what_the_processor_can_do(backbone):
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert resolve("auto", backbone) in (("float32", "bfloat16") if native else ("float32",))


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_auto_takes_the_fastest(backbone, monkeypatch, fastest):
    monkeypatch.setattr(precision, "_has_native_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_step_seconds", lambda name, *_: 0.5 if name == fastest else 1.0)
    assert resolve("auto", backbone) == fastest


def test_trial_leaves_the_backbone_alone(backbone, monkeypatch):
    monkeypatch.setattr(precision, "_has_native_bfloat16", lambda device: True)
    before = copy.deepcopy(backbone.state_dict())
    backbone.eval()
    resolve("auto", backbone)
    assert not backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
