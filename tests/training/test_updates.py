"""Updates that touch little: what may not change stays bit-equal and costs nothing, and resuming changes no bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from given_views import GivenViews
from torch.autograd.graph import saved_tensors_hooks
from torchvision.ops import StochasticDepth

from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.methods import METHODS
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.lora import merged
from hpt_mlflow.models.timm_networks import VARIANTS
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.training.state import TrainingState

ARCH = Architecture("timm:vit_tiny_patch16_224", 32)
UPDATES = ["all", "norm", "last:1", "lora", "explora"]
PLAN = Plan(
    steps=4,
    batch_size=8,
    learning_rate=0.01,
    warmup_steps=1,
    weight_decay=0.1,
    options={"key_momentum": 0.9, "temperature": 0.2, "queue_size": 16, "bn_splits": 2},
    statistics="keep",
    optimizer="adamw",
    head_rate=10.0,
    seed=3,
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    sizes = {"depth": 3, "embed_dim": 48, "num_heads": 3}
    monkeypatch.setitem(VARIANTS, "vit_tiny_patch16_224", ("vit_tiny_patch16_224", sizes))


def made(plan: Plan, seed: int = 0) -> Trainer:
    backbone, size = build_backbone(ARCH, seed)
    return Trainer(backbone, size, plan, ChannelStatistics((0.5,) * 3, (0.25,) * 3), torch.device("cpu"))


def learn(trainer: Trainer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        sizes = [32] * trainer.method.views + [16] * trainer.method.local_views
        views = (torch.randn(8, 3, size, size, generator=generator) for size in sizes)
        trainer.learn(GivenViews(*views))
        trainer.step += 1


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.state({}).tensors)


def may_change(update: str, name: str) -> bool:
    last = name.startswith(("blocks.2.", "norm."))
    attention = name.endswith(("attn.qkv.weight", "attn.proj.weight"))
    return {
        "all": True,
        "norm": "norm" in name,
        "last:1": last,
        "lora": attention,
        "explora": last or attention or "norm" in name,
    }[update]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("update", UPDATES)
def test_what_may_not_change_stays_bit_equal_without_gradient_or_optimiser_state(update, method):
    plan = replace(PLAN, update=update, method=method, options=METHODS[method].presets["quick"] | {"queue_size": 16})
    trainer = made(plan)
    before = copy.deepcopy(build_backbone(ARCH)[0].state_dict())
    learn(trainer, range(3))
    after = merged(trainer.backbone.state_dict())
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if may_change(update, name)}
    own = list(trainer.backbone.parameters())
    assert all((parameter.grad is None) == (not parameter.requires_grad) for parameter in own)
    assert not [parameter for parameter in own if not parameter.requires_grad and parameter in trainer.optimizer.state]
    # Frozen weights of a slower copy stay those of the network that it follows.
    for network in trainer.method.backbones:
        state = merged(network.state_dict())
        assert all(torch.equal(state[name], before[name]) for name in before.keys() - changed)


@pytest.mark.parametrize("update", UPDATES)
def test_a_resumed_training_ends_in_the_same_bits(update, tmp_path):
    plan = replace(PLAN, update=update)
    straight = made(plan)
    learn(straight, range(4))
    interrupted = made(plan)
    learn(interrupted, range(2))
    interrupted.state({}).write(tmp_path)
    resumed = made(plan, seed=9)
    resumed.restore(TrainingState.read(tmp_path))
    learn(resumed, range(2, 4))
    expected, got = tensors(straight), tensors(resumed)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def kept_for_the_backward_pass(update: str) -> int:
    """Bytes of activations, without parameters, that a step with an update keeps."""
    trainer = made(replace(PLAN, update=update))
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.method.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        # All stay alive until the loss is done, so that no storage is used twice.
        result = trainer.method(GivenViews(*torch.randn(2, 8, 3, 32, 32)), 0)
    assert result.loss.requires_grad
    return int(np.sum(list(sizes.values())))


def test_frozen_layers_keep_no_activations_that_they_do_not_need():
    kept = {update: kept_for_the_backward_pass(update) for update in UPDATES}
    # One block of three, with the head and the queue.
    assert kept["last:1"] < 0.6 * kept["all"]
    assert kept["norm"] < 0.85 * kept["all"]
    assert kept["lora"] < kept["all"]


def test_blocks_before_those_that_learn_record_nothing():
    trainer = made(replace(PLAN, update="last:1"))
    recorded = []
    for block in trainer.backbone.blocks:
        block.register_forward_hook(lambda _, inputs, output: recorded.append(output.requires_grad))
    trainer.backbone(torch.randn(2, 3, 32, 32))
    assert recorded == [False, False, True]


def test_learning_rates_fall_with_depth_and_gradients_are_clipped():
    trainer = made(replace(PLAN, layer_decay=0.5, clip_gradients=0.25))
    names = {id(parameter): name for name, parameter in trainer.method.named_parameters()}
    factors = {names[id(p)]: group["factor"] for group in trainer.optimizer.param_groups for p in group["params"]}
    of_backbone = {name.split("backbone.")[-1]: factor for name, factor in factors.items()}
    assert len(factors) == sum(parameter.requires_grad for parameter in trainer.method.parameters())
    assert sorted(set(factors.values()), reverse=True) == [10.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
    assert [factor for name, factor in of_backbone.items() if "blocks.2.attn.qkv.weight" in name] == [0.5]
    assert [factor for name, factor in of_backbone.items() if "patch_embed.proj.weight" in name] == [0.0625]
    learn(trainer, range(1))
    gradients = [parameter.grad for parameter in trainer.method.parameters() if parameter.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients) <= 0.25 * 1.001


def test_only_the_network_that_learns_by_gradients_leaves_branches_out():
    trainer = made(replace(PLAN, drop_path=0.4))
    found = [[m.p for m in network.modules() if isinstance(m, StochasticDepth)] for network in trainer.method.backbones]
    assert found[0] == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4, 0.4])
    assert not any(found[1])
