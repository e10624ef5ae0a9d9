from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from given_views import GivenViews
from test_moco import tiny_backbone
from torch import nn
from torch.nn import functional as F

from hpt_mlflow.methods.dino import DINO, Prototypes, cross_entropy, projector
from hpt_mlflow.models.learning import let_learn
from hpt_mlflow.models.update import parse_update

OPTIONS = {"teacher_momentum": 0.9, "teacher_temperature": 0.07, "prototypes": 12}


def tiny_dino(steps: int = 100, **options: float) -> DINO:
    """With a teacher that is no longer equal to the student, and a centre."""
    torch.manual_seed(0)
    dino = DINO(tiny_backbone(), 6, OPTIONS | options)
    dino.steps = steps
    with torch.no_grad():
        for parameter in dino.student_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        dino.student_prototypes.weight.add_(0.1 * torch.randn_like(dino.student_prototypes.weight))
        dino.centre.copy_(0.2 * torch.randn(12))
    return dino


def ten_views(seed: int = 5) -> GivenViews:
    generator = torch.Generator().manual_seed(seed)
    sizes = [16, 16] + [7] * 8
    return GivenViews(*(torch.randn(4, 3, size, size, generator=generator) for size in sizes))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def logits_of(encoder, prototypes, views) -> np.ndarray:
    """Cosine similarities to the prototypes, written down again, float64 (n, K)."""
    with torch.no_grad():
        embeddings = encoder(views).numpy().astype(np.float64)
    weights = prototypes.weight.detach().numpy().astype(np.float64)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings @ (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T


def by_the_paper(dino: DINO, views: GivenViews, temperature: float) -> tuple[float, float]:
    """Equation 3, pair by pair, and the mean entropy of the teacher; the views of each size are one batch."""
    whole, local = torch.cat(views.views[:2]), torch.cat(views.views[2:])
    centre = dino.centre.numpy().astype(np.float64)
    teacher = softmax((logits_of(dino.teacher_encoder, dino.teacher_prototypes, whole) - centre) / temperature)
    student = [logits_of(dino.student_encoder, dino.student_prototypes, batch) for batch in (whole, local)]
    student = softmax(np.concatenate(student) / 0.1)
    losses = [
        -(teacher[4 * i + image] * np.log(student[4 * j + image])).sum()
        for i in range(2)
        for j in range(10)
        for image in range(4)
        if i != j
    ]
    assert len(losses) == 4 * 18
    return float(np.mean(losses)), float(-(teacher * np.log(teacher)).sum(axis=1).mean())


@pytest.mark.parametrize("step", [0, 5, 10, 60])
def test_the_loss_and_its_metrics_are_those_of_the_paper(step):
    dino, views = tiny_dino(), ten_views()
    result = dino(views, step)
    loss, entropy = by_the_paper(dino, views, 0.04 + 0.03 * min(1, step / 10))
    assert float(result.loss.detach()) == pytest.approx(loss, abs=1e-6)
    assert float(result.metrics[0]) == pytest.approx(entropy, abs=1e-6)
    assert float(result.metrics[1]) == pytest.approx(loss - entropy, abs=2e-6)
    assert result.embeddings.shape == (4, 256)
    assert not result.embeddings.requires_grad
    torch.testing.assert_close(result.embeddings.norm(dim=1), torch.ones(4))


def test_the_loss_its_gradients_and_the_centre_are_those_of_lightly():
    lightly = pytest.importorskip("lightly.loss")
    dino, views = tiny_dino(), ten_views()
    theirs = lightly.DINOLoss(
        12, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=5, student_temp=0.1
    )
    centre = dino.centre.clone()
    theirs.center.copy_(centre)
    whole, local = torch.cat(views.views[:2]), torch.cat(views.views[2:])
    with torch.no_grad():
        teacher = dino.teacher_prototypes(F.normalize(dino.teacher_encoder(whole), dim=1))
    student = [F.normalize(dino.student_encoder(batch), dim=1) for batch in (whole, local)]
    logits = [part for batch in student for part in dino.student_prototypes(batch).split(4)]
    expected = theirs(list(teacher.split(4)), logits, epoch=50)
    result = dino(views, 50)
    assert float(result.loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    learning = [parameter for parameter in dino.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(result.loss, learning)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, learning), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    dino.after_step(50)
    assert not torch.allclose(dino.centre, centre)
    torch.testing.assert_close(dino.centre, theirs.center.flatten())


def test_the_centre_moves_to_the_mean_of_the_teacher_s_logits_after_the_step():
    dino, views = tiny_dino(), ten_views()
    before = dino.centre.clone()
    logits = logits_of(dino.teacher_encoder, dino.teacher_prototypes, torch.cat(views.views[:2]))
    dino(views, 0)
    assert torch.equal(dino.centre, before)
    dino.after_step(0)
    expected = 0.9 * before.double() + 0.1 * torch.from_numpy(logits.mean(axis=0))
    torch.testing.assert_close(dino.centre.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("step", "kept"), [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_the_teacher_is_a_moving_average_that_slows_down_to_a_standstill(step, kept):
    dino = tiny_dino()
    teacher = [*dino.teacher_encoder.parameters(), *dino.teacher_prototypes.parameters()]
    student = [*dino.student_encoder.parameters(), *dino.student_prototypes.parameters()]
    before = [parameter.clone() for parameter in teacher]
    dino(ten_views(), step)
    assert all(torch.equal(old, now) for old, now in zip(before, teacher, strict=True))
    dino.after_step(step)
    for old, now, leading in zip(before, teacher, student, strict=True):
        torch.testing.assert_close(now, kept * old + (1 - kept) * leading.detach(), rtol=1e-5, atol=1e-6)


def test_the_teacher_has_no_gradient_and_is_what_is_registered():
    backbone = tiny_backbone()
    dino = DINO(backbone, 6, OPTIONS)
    assert dino.learner is backbone
    assert dino.backbone is dino.teacher_encoder[0]
    assert list(dino.backbones) == [dino.learner, dino.backbone]
    dino.steps = 1
    dino(ten_views(), 1).loss.backward()
    for network in (dino.teacher_encoder, dino.teacher_prototypes):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    for network in (dino.student_encoder, dino.student_prototypes):
        assert all(parameter.grad is not None for parameter in network.parameters())
    rates = {len(group["params"]): group["factor"] for group in dino.make_optimizer(0.1, 0.0, head_rate=5).param_groups}
    assert rates == {len(list(backbone.parameters())): 1.0, 11: 5}


def test_prototypes_do_not_turn_during_the_first_hundredth_of_the_training():
    dino = tiny_dino(steps=200)
    optimizer = dino.make_optimizer(0.1, 0.5)
    directions = [F.normalize(dino.student_prototypes.weight.detach(), dim=1)]
    for step in range(4):
        optimizer.zero_grad()
        dino(ten_views(step), step).loss.backward()
        assert (dino.student_prototypes.weight.grad.abs().max() == 0) == (step < 2)
        optimizer.step()
        dino.after_step(step)
        directions.append(F.normalize(dino.student_prototypes.weight.detach(), dim=1))
    # Weight decay changes only their lengths.
    assert not torch.equal(dino.student_prototypes.weight[0].norm(), directions[0][0].norm())
    torch.testing.assert_close(directions[2], directions[0], rtol=0, atol=1e-6)
    assert (directions[3] - directions[2]).abs().max() > 1e-4


def test_frozen_weights_stay_equal_in_both_networks():
    torch.manual_seed(0)
    backbone = tiny_backbone()
    let_learn(backbone, parse_update("bn"))
    dino = DINO(backbone, 6, OPTIONS)
    dino.steps = 10
    frozen = backbone[0].weight.detach().clone()
    optimizer = dino.make_optimizer(1.0, 0.0)
    dino(ten_views(), 1).loss.backward()
    optimizer.step()
    dino.after_step(1)
    for encoder in (dino.student_encoder, dino.teacher_encoder):
        assert torch.equal(encoder[0][0].weight, frozen)
        assert not torch.equal(encoder[0][1].weight, torch.ones(6))


@pytest.mark.parametrize(("kind", "entropy"), [("one", 0.0), ("all", math.log(12))])
def test_both_kinds_of_collapse_show_as_a_divergence_of_0(kind, entropy):
    logits = torch.zeros(12)
    logits[3] = 100.0 if kind == "one" else 0.0
    targets = F.softmax(logits, dim=0).expand(2, 5, 12)
    loss = cross_entropy(targets, F.log_softmax(logits, dim=0).expand(10, 5, 12))
    assert float(loss) == pytest.approx(entropy, abs=1e-5)
    assert f"equally onto all, with {math.log(12):.2f}" in DINO.chance({"prototypes": 12}, 64)


@pytest.mark.parametrize(
    ("prototypes", "given", "images", "fitted"),
    [(4096, (), 1000, 1000), (4096, (), 9000, 4096), (4096, ("prototypes",), 1000, 4096)],
)
def test_there_is_at_most_one_prototype_per_image_unless_the_user_says_otherwise(prototypes, given, images, fitted):
    options = DINO.fit_options(OPTIONS | {"prototypes": prototypes}, given, 64, images, 1)
    assert options == OPTIONS | {"prototypes": fitted}


def test_the_teacher_s_temperature_does_not_start_above_its_end():
    dino = tiny_dino(teacher_temperature=0.02)
    assert [dino.teacher_temperature_at(step) for step in (0, 5, 99)] == [0.02] * 3


def test_projector_and_prototypes_are_those_of_the_paper():
    shapes = [tuple(parameter.shape) for parameter in projector(6).parameters() if parameter.ndim == 2]
    assert shapes == [(2048, 6), (2048, 2048), (256, 2048)]
    assert [type(layer).__name__ for layer in projector(6)] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert Prototypes(9).weight.shape == (9, 256)


def test_the_projector_has_batch_norm_where_the_backbone_has():
    def norms(backbone):
        dino = DINO(backbone, 6, OPTIONS)
        return [sum(isinstance(m, nn.BatchNorm1d) for m in part.modules()) for part in dino.networks]

    assert norms(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1))) == [2, 2]
    assert norms(nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(1))) == [0, 0]


def test_an_image_passes_through_the_network_as_often_as_is_said():
    """Pixels through the student count threefold, for its backward pass, and those through the teacher once."""
    pixels = 3 * (2 * 224**2 + 8 * 96**2) + 2 * 224**2
    assert DINO.passes == pytest.approx(pixels / 224**2)
