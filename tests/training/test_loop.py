from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hpt_mlflow.augment.multicrop import LocalViews
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.methods import METHODS, load_method
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan

SIZE = 16
STATISTICS = ChannelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PLAN = Plan(
    steps=4,
    batch_size=8,
    learning_rate=0.1,
    warmup_steps=2,
    weight_decay=1e-4,
    options={"key_momentum": 0.9, "temperature": 0.2, "queue_size": 16, "bn_splits": 2},
    seed=3,
)
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def tiny_backbone() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )


@pytest.fixture
def images(open_images):
    """32 pictures that are easy to tell apart: four blocks of colours of their own."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (32, 2, 2, 3), dtype=np.uint8)
    return open_images(list(blocks.repeat(12, axis=1).repeat(12, axis=2)))


def make_trainer(plan: Plan) -> Trainer:
    return Trainer(tiny_backbone(), 16, plan, STATISTICS, torch.device("cpu"))


def make_batches(images, plan: Plan) -> ViewBatches:
    method = load_method(plan.method)
    local = LocalViews(method.local_views, SIZE // 2)
    return ViewBatches(
        images, plan.batch_size, SIZE, plan.subset, plan.strengths, plan.seed, views=method.views, local=local
    )


def run(images, plan: Plan, report_every: int = 1) -> tuple[Trainer, list]:
    trainer = make_trainer(plan)
    return trainer, list(trainer.train(make_batches(images, plan), workers=0, report_every=report_every))


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_steps_are_counted_from_1(images):
    trainer, progress = run(images, PLAN)
    assert [step for step, _ in progress] == [1, 2, 3, 4]
    assert trainer.step == 4


@pytest.mark.parametrize(("report_every", "reporting"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (100, [5])])
def test_reports_come_when_due_and_at_the_last_step(images, report_every, reporting):
    _, progress = run(images, replace(PLAN, steps=5), report_every)
    assert [step for step, metrics in progress if metrics] == reporting


def test_report_is_the_mean_over_the_steps_since_the_last_one(images):
    plan = replace(PLAN, steps=5)
    _, every_step = run(images, plan, 1)
    _, every_second = run(images, plan, 2)
    for name in ("train/loss", "train/top1", "train/embedding_std"):
        single = [metrics[name] for _, metrics in every_step]
        means = [metrics[name] for _, metrics in every_second if metrics]
        assert means == pytest.approx([np.mean(single[:2]), np.mean(single[2:4]), single[4]], rel=1e-5)


def test_report_holds_what_shows_learning(images):
    _, progress = run(images, PLAN)
    for _, metrics in progress:
        assert metrics.keys() == {
            "train/loss",
            "train/top1",
            "train/embedding_std",
            "train/effective_rank",
            "train/learning_rate",
            "train/images_per_second",
        }
        assert all(math.isfinite(value) for value in metrics.values())
        assert 0 <= metrics["train/top1"] <= 1
        assert 1 <= metrics["train/effective_rank"] <= 16
        assert metrics["train/images_per_second"] > 0


def test_learning_rate_follows_the_schedule(images):
    trainer = make_trainer(PLAN)
    for step, metrics in trainer.train(make_batches(images, PLAN), workers=0, report_every=1):
        expected = 0.1 * min(1, step / 2) * (1 + math.cos(math.pi * (step - 1) / 4)) / 2
        assert metrics["train/learning_rate"] == pytest.approx(expected)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_steps_are_sgd_with_momentum_and_weight_decay(images):
    plan = replace(PLAN, weight_decay=0.2)
    trainer = make_trainer(plan)
    parameters = list(trainer.method.query_encoder.parameters())
    weights = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for _, metrics in trainer.train(make_batches(images, plan), workers=0, report_every=1):
        for i, parameter in enumerate(parameters):
            momenta[i] = 0.9 * momenta[i] + parameter.grad + 0.2 * weights[i]
            weights[i] = weights[i] - metrics["train/learning_rate"] * momenta[i]
            torch.testing.assert_close(parameter.detach(), weights[i], rtol=1e-4, atol=1e-6)


def test_update_all_moves_every_weight_and_statistic(images):
    before = tensors_of(make_trainer(PLAN).method.query_encoder)
    trainer, _ = run(images, PLAN)
    after = trainer.method.query_encoder.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_update_bn_moves_nothing_of_the_backbone_but_batch_norm(images):
    plan = replace(PLAN, update="bn")
    before = tensors_of(make_trainer(plan).method.query_encoder)
    trainer, _ = run(images, plan)
    encoder = trainer.method.query_encoder
    after = encoder.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"0.0.weight", "0.3.weight", "0.3.bias"}

    parameters = dict(encoder.named_parameters())
    assert all(parameters[name].grad is None for name in same)
    assert all(parameters[name].grad is not None for name in parameters.keys() - same)
    learning = {parameter for name, parameter in parameters.items() if name not in same}
    assert set(trainer.optimizer.state) == learning
    key_encoder = trainer.method.key_encoder.state_dict()
    assert all(torch.equal(key_encoder[name], before[name]) for name in same)


def test_update_bn_stats_moves_running_statistics_and_nothing_else(images):
    plan = replace(PLAN, update="bn-stats")
    before = tensors_of(make_trainer(plan).method)
    trainer, progress = run(images, plan)
    after = trainer.method.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"query_encoder.0.{layer}.{name}" for layer in (1, 4) for name in RUNNING}
    assert trainer.optimizer is None
    assert all(parameter.grad is None for parameter in trainer.method.parameters())
    assert [step for step, _ in progress] == [1, 2, 3, 4]
    assert progress[-1].metrics.keys() == {"train/images_per_second"}


def test_bn_stats_are_those_of_the_images(images):
    plan = replace(PLAN, update="bn-stats", steps=3, subset=())
    trainer, _ = run(images, plan)
    convolution, norm = trainer.backbone[0], trainer.backbone[1]
    batches = make_batches(images, plan)
    mean, variance = torch.zeros(8), torch.ones(8)
    for task in batches.tasks(range(3)):
        crops = batches[task].crops
        with torch.no_grad():
            maps = convolution((crops[0].float() / 255 - 0.5) / 0.25)
        mean = 0.9 * mean + 0.1 * maps.mean(dim=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * maps.var(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, variance, atol=1e-5, rtol=1e-4)


def test_loss_goes_down(images):
    plan = replace(
        PLAN,
        steps=40,
        batch_size=16,
        options=PLAN.options | {"queue_size": 32},
        learning_rate=0.2,
        subset=("crop", "flip"),
    )
    _, progress = run(images, plan)
    # The queue starts with random keys, which are easy negatives; it is full of real ones after two steps.
    losses = [metrics["train/loss"] for _, metrics in progress]
    assert np.mean(losses[-8:]) < np.mean(losses[2:10]) - 0.3
    assert np.mean(losses[-8:]) < math.log(1 + 32) - 0.5


@pytest.mark.parametrize("update", ["all", "bn", "bn-stats"])
def test_same_seed_gives_the_same_weights_to_the_bit(images, update):
    plan = replace(PLAN, update=update)
    first, second = (run(images, plan)[0].method.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_seed_gives_other_weights(images):
    first, second = (run(images, replace(PLAN, seed=seed))[0].method.state_dict() for seed in (3, 4))
    assert not torch.equal(first["query_encoder.0.0.weight"], second["query_encoder.0.0.weight"])


def test_workers_do_not_change_the_weights(images):
    weights = []
    for workers in (0, 1):
        trainer = make_trainer(PLAN)
        for _ in trainer.train(make_batches(images, PLAN), workers=workers, report_every=10):
            pass
        weights.append(trainer.method.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("report_every", [1, 100])
def test_loss_that_is_no_number_ends_the_training(images, report_every):
    with pytest.raises(HptError, match=r"loss became (nan|inf) .*learning_rate \(now 1e\+30\)") as caught:
        run(images, replace(PLAN, learning_rate=1e30, steps=8), report_every)
    assert "\n" not in str(caught.value)


def test_queue_holds_the_keys_of_the_last_steps(images):
    plan = replace(PLAN, steps=3)
    trainer = make_trainer(plan)
    at_start = trainer.method.queue.clone()
    queues = [trainer.method.queue.clone() for _ in trainer.train(make_batches(images, plan), 0, report_every=1)]
    assert torch.equal(queues[0][8:], at_start[8:])
    assert torch.equal(queues[1][:8], queues[0][:8])
    assert not torch.equal(queues[1][8:], at_start[8:])
    assert torch.equal(queues[2][8:], queues[1][8:])
    assert not torch.equal(queues[2][:8], queues[1][:8])


def test_views_are_normalised():
    trainer = make_trainer(replace(PLAN, subset=()))
    crops = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(PLAN.batch_size, 3, 4, 4)
    views = trainer.finish(crops, trainer.draw_view(np.random.default_rng(0)))
    assert views.dtype == torch.float32
    torch.testing.assert_close(views[0, :, 0, 0], torch.tensor([-2.0, -1.2, 2.0]))


def test_bfloat16_trains_float32_weights(images):
    trainer, progress = run(images, replace(PLAN, precision="bfloat16"))
    assert all(parameter.dtype == torch.float32 for parameter in trainer.method.parameters())
    assert math.isfinite(progress[-1].metrics["train/loss"])
    exact, _ = run(images, PLAN)
    assert not torch.equal(exact.backbone[0].weight, trainer.backbone[0].weight)
    torch.testing.assert_close(exact.backbone[0].weight, trainer.backbone[0].weight, atol=0.05, rtol=0)


def test_bfloat16_refreshes_float32_statistics(images):
    refreshed, _ = run(images, replace(PLAN, precision="bfloat16", update="bn-stats"))
    exact, _ = run(images, replace(PLAN, update="bn-stats"))
    for layer, other in zip(batch_norms(refreshed.backbone), batch_norms(exact.backbone), strict=True):
        torch.testing.assert_close(layer.running_mean, other.running_mean, atol=0.02, rtol=0)


def resumed_after(images, plan: Plan, step: int, report_every: int) -> tuple[list, Trainer]:
    """Progress of a training that resumes from a copy of its state after a step, in another trainer."""
    first, second = make_trainer(plan), make_trainer(plan)
    progress = []
    for one in first.train(make_batches(images, plan), workers=0, report_every=report_every):
        progress.append(one)
        if one.step == step:
            break
    second.restore(first.state({}))
    progress += second.train(make_batches(images, plan), workers=0, report_every=report_every)
    return progress, second


def without_speed(progress: list) -> list:
    return [
        (step, {name: value for name, value in metrics.items() if name != "train/images_per_second"})
        for step, metrics in progress
    ]


@pytest.mark.parametrize("update", ["all", "bn", "bn-stats"])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resume_anywhere_in_a_window_changes_no_bit_of_a_report(images, update, step):
    plan = replace(PLAN, steps=7, update=update)
    expected, progress = run(images, plan, report_every=3)
    resumed, trainer = resumed_after(images, plan, step, report_every=3)
    assert without_speed(resumed) == without_speed(progress)
    assert [step for step, metrics in resumed if metrics] == [3, 6, 7]
    after = expected.method.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in trainer.method.state_dict().items())


def test_a_resumed_training_reports_the_speed_of_its_own_steps(images):
    plan = replace(PLAN, steps=400, subset=("crop",))
    trainer, other = make_trainer(plan), make_trainer(plan)
    trainer.step = 399
    other.restore(trainer.state({}))
    began = time.perf_counter()
    ((step, metrics),) = other.train(make_batches(images, plan), workers=0, report_every=400)
    assert step == 400
    # 400 steps in the time of one would be four times as many.
    assert metrics["train/images_per_second"] < 100 * plan.batch_size / (time.perf_counter() - began)


@pytest.mark.parametrize(("step", "gathered"), [(1, 1), (2, 2), (3, 0), (4, 1)])
def test_a_state_holds_what_the_next_report_has_gathered(images, step, gathered):
    trainer = make_trainer(PLAN)
    for one in trainer.train(make_batches(images, PLAN), workers=0, report_every=3):
        if one.step == step:
            break
    state = trainer.state({5: "no picture"})
    # The last step reports.
    assert state.tensors["report/gathered"].shape == (gathered if step < PLAN.steps else 0, 3)
    assert (state.step, state.unreadable) == (step, {5: "no picture"})


def test_a_loss_that_is_no_number_is_noticed_though_the_training_was_resumed_in_between(images):
    plan = replace(PLAN, steps=8, learning_rate=1e30)
    first, second = make_trainer(plan), make_trainer(plan)
    for step, _ in first.train(make_batches(images, plan), workers=0, report_every=100):
        if step == 6:
            break
    second.restore(first.state({}))
    with pytest.raises(HptError, match="between steps 1 and 8"):
        list(second.train(make_batches(images, plan), workers=0, report_every=100))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("update", ["all", "bn"])
def test_kept_statistics_stay_and_are_those_that_the_training_uses(images, method, update):
    options = {name: PLAN.options.get(name, value) for name, value in METHODS[method].presets["quick"].items()}
    plan = replace(PLAN, method=method, options=options, update=update, statistics="keep")
    before = tensors_of(tiny_backbone())
    trainer, _ = run(images, plan)
    after = tensors_of(trainer.backbone)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.endswith(RUNNING) for name in changed)
    assert {"1.weight", "4.bias"} <= changed
    assert ("0.weight" in changed) == (update == "all")
    views = torch.randn(4, 3, SIZE, SIZE)
    for network in trainer.method.backbones:
        training = network(views)
        assert torch.equal(training, copy.deepcopy(network).eval()(views))


def test_the_head_learns_at_its_own_rate(images):
    def moved(head_rate):
        trainer = make_trainer(replace(PLAN, head_rate=head_rate, weight_decay=0.0, warmup_steps=0))
        before = tensors_of(trainer.method.query_encoder)
        next(trainer.train(make_batches(images, PLAN), workers=0, report_every=1))
        after = tensors_of(trainer.method.query_encoder)
        return {name: after[name] - before[name] for name in before if name.endswith("weight")}

    alike, apart = moved(1.0), moved(10.0)
    for name, step in alike.items():
        factor = 10 if name.startswith("2.") else 1
        torch.testing.assert_close(apart[name], factor * step, rtol=1e-3, atol=1e-6)


def test_adamw_has_decoupled_weight_decay(images):
    plan = replace(PLAN, optimizer="adamw", weight_decay=0.5)
    trainer = make_trainer(plan)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.5}
    list(trainer.train(make_batches(images, plan), workers=0, report_every=1))
    assert all("exp_avg" in state for state in trainer.optimizer.state.values())


def test_a_first_step_that_overflows_leaves_the_next_one_as_it_would_be():
    torch.manual_seed(0)
    method = make_trainer(PLAN).method
    optimizer = method.make_optimizer(0.1, 0.0)
    weight = next(method.parameters())
    before = weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    # Memory that is taken and never written is NaN, and not by chance 0.
    torch.use_deterministic_algorithms(True)
    try:
        for gradient in (math.inf, 3.0):
            loss = scaler.scale(torch.ones(()))
            for parameter in method.parameters():
                parameter.grad = torch.full_like(parameter, gradient) * loss
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(weight.detach(), before - 0.1 * 3.0)
