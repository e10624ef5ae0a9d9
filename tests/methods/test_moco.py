from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from given_views import GivenViews
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.methods.base import StepResult, projection_head
from hpt_mlflow.methods.moco import MoCo, info_nce, top1
from hpt_mlflow.models.learning import let_learn
from hpt_mlflow.models.update import parse_update

OPTIONS = {"key_momentum": 0.999, "temperature": 0.2, "queue_size": 16, "bn_splits": 1}


def tiny_backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, kernel_size=3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def tiny_moco(**settings) -> MoCo:
    torch.manual_seed(0)
    return MoCo(tiny_backbone(), 6, OPTIONS | settings)


def two_views(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randn(n, 3, 8, 8, generator=generator)


def step(moco: MoCo) -> tuple[StepResult, torch.Tensor]:
    """What one step computes, and its keys."""
    result = moco(GivenViews(*two_views()), 0)
    return result, moco._keys


def test_loss_is_infonce():
    moco = tiny_moco(temperature=0.3)
    output, encoded = step(moco)
    queries, keys, queue = (t.numpy().astype(np.float64) for t in (output.embeddings, encoded, moco.queue))
    losses = []
    for query, key in zip(queries, keys, strict=True):
        similarities = np.array([query @ key, *(query @ negative for negative in queue)]) / 0.3
        highest = similarities.max()
        losses.append(highest + math.log(np.exp(similarities - highest).sum()) - similarities[0])
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_top1_is_the_share_of_positive_keys_ranked_first():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 0.0], [5.0, 4.0, 4.0], [1.0, 0.0, 9.0]])
    assert float(top1(logits)) == 0.5


def test_the_loss_of_equal_logits_is_that_of_chance():
    assert float(info_nce(torch.zeros(3, 17))) == pytest.approx(math.log(17))
    assert MoCo.chance({"queue_size": 999}, 64) == "loss ln(1 + queue) = 6.91, top-1 = 0.10%"


def test_embeddings_have_length_1():
    moco = tiny_moco()
    output, keys = step(moco)
    for embeddings in (output.embeddings, keys, moco.queue):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    assert output.embeddings.shape == keys.shape == (8, 128)


def test_encoders_start_equal_and_apart():
    moco = tiny_moco()
    for query, key in zip(moco.query_encoder.parameters(), moco.key_encoder.parameters(), strict=True):
        assert torch.equal(query, key)
        assert query.data_ptr() != key.data_ptr()


def test_key_encoder_follows_by_momentum():
    moco = tiny_moco(key_momentum=0.9)
    with torch.no_grad():
        for parameter in moco.query_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    query_before = [p.detach().clone() for p in moco.query_encoder.parameters()]
    key_before = [p.detach().clone() for p in moco.key_encoder.parameters()]
    moco.update_key_encoder()
    for query, key, now in zip(query_before, key_before, moco.key_encoder.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * key + 0.1 * query, rtol=1e-5, atol=1e-7)
        assert not torch.equal(now, key)
    assert all(torch.equal(a, b) for a, b in zip(query_before, moco.query_encoder.parameters(), strict=True))


def test_key_encoder_gets_no_gradient():
    moco = tiny_moco()
    output, keys = step(moco)
    output.loss.backward()
    assert not keys.requires_grad
    assert all(parameter.grad is None for parameter in moco.key_encoder.parameters())
    assert all(parameter.grad is not None for parameter in moco.query_encoder.parameters())
    assert moco.queue.grad is None


def test_enqueue_replaces_the_oldest_and_wraps():
    moco = tiny_moco(queue_size=6)
    initial = moco.queue.clone()
    keys = [torch.full((2, 128), float(i)) for i in range(5)]
    moco.enqueue(keys[0], step=0)
    assert torch.equal(moco.queue, torch.cat([keys[0], initial[2:]]))
    for number in (1, 2):
        moco.enqueue(keys[number], step=number)
    assert torch.equal(moco.queue, torch.cat(keys[:3]))
    moco.enqueue(keys[3], step=3)
    assert torch.equal(moco.queue, torch.cat([keys[3], keys[1], keys[2]]))
    moco.enqueue(keys[4], step=4)
    assert torch.equal(moco.queue, torch.cat([keys[3], keys[4], keys[2]]))


def test_place_in_the_queue_depends_on_the_step_alone():
    moco = tiny_moco(queue_size=6)
    initial = moco.queue.clone()
    keys = torch.ones(2, 128)
    moco.enqueue(keys, step=3 * 1000 + 1)
    assert torch.equal(moco.queue, torch.cat([initial[:2], keys, initial[4:]]))


def test_a_step_moves_neither_queue_nor_weights():
    moco = tiny_moco()
    before = {name: tensor.clone() for name, tensor in moco.state_dict().items()}
    step(moco)[0].loss.backward()
    changed = {name for name, tensor in moco.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"{encoder}.0.1.{name}"
        for encoder in ("query_encoder", "key_encoder")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_keys_go_back_to_the_images_that_they_were_shuffled_from():
    query_views, key_views = two_views()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    straight, shuffled = tiny_moco(), tiny_moco()
    expected = straight(GivenViews(query_views, key_views), 0)
    result = shuffled(GivenViews(query_views, key_views[order], order=order), 0)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(shuffled._keys, straight._keys)


@pytest.mark.parametrize(
    ("images", "batch_size", "queue_size", "expected"),
    [
        *((images, 8, 64, size) for images, size in [(1000, 64), (64, 64), (63, 56), (20, 16), (8, 8), (7, 8)]),
        (1000, 8, 30, 24),
        (1000, 8, 3, 8),
    ],
)
def test_the_queue_is_cut_to_whole_batches_of_an_epoch(images, batch_size, queue_size, expected):
    options = OPTIONS | {"queue_size": queue_size}
    assert MoCo.fit_options(options, (), batch_size, images, 1) == options | {"queue_size": expected}


def test_split_key_batch_is_encoded_part_by_part():
    moco = tiny_moco(bn_splits=4)
    _, key_views = two_views()
    encoder = copy.deepcopy(moco.query_encoder)
    keys = moco.encode_keys(key_views)

    expected = torch.empty(8, 128)
    for part in range(4):
        members = slice(2 * part, 2 * part + 2)
        with torch.no_grad():
            expected[members] = encoder(key_views[members])
    torch.testing.assert_close(keys, F.normalize(expected, dim=1))

    with torch.no_grad():
        together = F.normalize(copy.deepcopy(encoder)(key_views), dim=1)
    assert (keys - together).abs().max() > 0.01


def test_backbone_is_the_query_encoder_without_head():
    backbone = tiny_backbone()
    moco = MoCo(backbone, 6, OPTIONS)
    assert moco.backbone is backbone


def test_projection_head_has_two_layers_to_128_dimensions():
    torch.manual_seed(0)
    head = projection_head(256)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (head[0].weight.shape, head[2].weight.shape) == ((256, 256), (128, 256))
    # Kaiming, fan out, for ReLU: standard deviation sqrt(2 / number of outputs).
    assert head[0].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert head[2].weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)
    assert not head[0].bias.any()


@pytest.mark.parametrize(
    ("update", "learning"),
    [("all", {"0.weight", "1.weight", "1.bias"}), ("bn", {"1.weight", "1.bias"}), ("bn-stats", set())],
)
def test_that_learns_what_update_allows(update, learning):
    backbone = tiny_backbone().requires_grad_(update != "all")
    let_learn(backbone, parse_update(update))
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == learning


def test_frozen_weights_stay_equal_in_both_encoders():
    torch.manual_seed(0)
    backbone = tiny_backbone()
    let_learn(backbone, parse_update("bn"))
    moco = MoCo(backbone, 6, OPTIONS | {"key_momentum": 0.5})
    frozen = backbone[0].weight.detach().clone()
    step(moco)[0].loss.backward()
    torch.optim.SGD([p for p in moco.query_encoder.parameters() if p.requires_grad], lr=1.0).step()
    moco.update_key_encoder()
    assert torch.equal(moco.key_encoder[0][0].weight, frozen)
    assert not torch.equal(moco.key_encoder[0][1].weight, torch.ones(6))
