"""Two processes that train together, against one that trains alone and against the method written down again."""

import math
import os
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from given_views import GivenViews
from PIL import Image
from test_loop import PLAN, SIZE, STATISTICS, tiny_backbone, without_speed
from together import KILLED, in_processes
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hpt_mlflow.augment.multicrop import LocalViews
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.group import ALONE, LostProcessError
from hpt_mlflow.methods import METHODS, load_method
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.state import TrainingState

CPU = torch.device("cpu")
HALVES = [slice(0, 4), slice(4, 8)]
FOUR_PARTS = replace(PLAN, options=PLAN.options | {"bn_splits": 4}, weight_decay=0.01)

# One for each method, of which those of the default are above.
PLANS = {"moco": FOUR_PARTS, "simclr": replace(PLAN, method="simclr", options={"temperature": 0.5})}


def plain_backbone():
    """A network without BatchNorm, so that nothing depends on which images share a batch."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )


def trainer_of(plan, group, network=tiny_backbone):
    return Trainer(network(), 16, plan, STATISTICS, CPU, group)


def batches_of(plan, group, folder=None, vanishing=()):
    """Batches of pictures of noise, one process's share; some of those in a folder vanish once all have opened them."""
    if folder is None:
        pictures = list(np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8))
        images = Images(opened(pictures), np.arange(40), smallest_side=4096)
    else:
        pictures = sorted(folder.iterdir())
        images = Images(opened(pictures), np.arange(len(pictures)), 4096, memory_limit_bytes=0)
        group.any(True)
        for index in vanishing:
            pictures[index].unlink(missing_ok=True)
    own = group.part(plan.batch_size)
    method = load_method(plan.method)
    local = LocalViews(method.local_views, SIZE // 2)
    return ViewBatches(images, plan.batch_size, SIZE, plan.subset, plan.strengths, plan.seed, own, method.views, local)


def opened(pictures):
    return Dataset("noise", "test:noise", pictures, [str(i) for i in range(len(pictures))], None, ())


def tensors_of(trainer):
    tensors = {name: tensor.clone() for name, tensor in trainer.method.state_dict().items()}
    for number, state in (trainer.optimizer.state_dict()["state"] if trainer.optimizer else {}).items():
        tensors[f"momentum {number}"] = state["momentum_buffer"].clone()
    return tensors


def random_views(plan):
    """Query views, key views in shuffled order and that order, of some steps of all processes together."""
    generator = torch.Generator().manual_seed(11)
    shape = (plan.batch_size, 3, SIZE, SIZE)
    return [
        (
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator),
            torch.randperm(plan.batch_size, generator=generator),
        )
        for _ in range(plan.steps)
    ]


def learn(group, line, plan):
    """Gradients, tensors and loss after each step."""
    trainer = trainer_of(plan, group)
    own = group.part(plan.batch_size)
    seen = []
    for queries, keys, order in random_views(plan):
        output = trainer.learn(GivenViews(queries[own], keys[own], order=order))
        trainer.step += 1
        gradients = {name: p.grad.clone() for name, p in trainer.method.named_parameters() if p.grad is not None}
        seen.append((gradients, tensors_of(trainer), float(output.loss.detach())))
    return seen


def method(plan):
    """The same by the paper: one process, the whole batch, and every part of it normalised by itself."""
    start = trainer_of(plan, ALONE).method
    kept, temperature, splits = (plan.options[name] for name in ("key_momentum", "temperature", "bn_splits"))
    weights = {name: p.detach().clone() for name, p in start.query_encoder.named_parameters()}
    key_weights = {name: weight.clone() for name, weight in weights.items()}
    learning = [name for name, p in start.query_encoder.named_parameters() if p.requires_grad]
    momenta = {name: torch.zeros_like(weights[name]) for name in learning}
    fresh = dict(start.query_encoder.named_buffers())
    statistics = [{name: buffer.clone() for name, buffer in fresh.items()} for _ in HALVES]
    queue = start.queue.clone()
    network = start.query_encoder
    for step, (queries, keys, order) in enumerate(random_views(plan)):
        rate = plan.learning_rate * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / plan.steps)) / 2
        for name in learning:
            key_weights[name] = kept * key_weights[name] + (1 - kept) * weights[name]
        encoded = torch.empty(8, 128)
        for part in range(splits):
            members = slice(part * 8 // splits, (part + 1) * 8 // splits)
            scratch = {name: buffer.clone() for name, buffer in fresh.items()}
            with torch.no_grad():
                encoded[order[members]] = F.normalize(functional_call(network, key_weights | scratch, (keys[members],)))
        leaves = {name: weights[name].clone().requires_grad_(name in learning) for name in weights}
        parts = [
            functional_call(network, leaves | statistics[rank], (queries[half],)) for rank, half in enumerate(HALVES)
        ]
        embedded = F.normalize(torch.cat(parts))
        logits = torch.cat([(embedded * encoded).sum(1, keepdim=True), embedded @ queue.T], dim=1) / temperature
        losses = logits.logsumexp(1) - logits[:, 0]
        gradients = dict(zip(learning, torch.autograd.grad(losses.mean(), [leaves[n] for n in learning]), strict=True))
        for name in learning:
            momenta[name] = 0.9 * momenta[name] + gradients[name] + plan.weight_decay * weights[name]
            weights[name] = weights[name] - rate * momenta[name]
        place = step * 8 % len(queue)
        queue = torch.cat([queue[:place], encoded, queue[place + 8 :]])
        yield gradients, weights, key_weights, statistics, momenta, queue, losses.detach()


def assert_close(one, other, name=""):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("update", ["all", "bn"])
def test_two_processes_do_what_the_method_says(update):
    plan = replace(FOUR_PARTS, update=update)
    ranks = in_processes(learn, plan)
    for step, (gradients, weights, key_weights, statistics, momenta, queue, losses) in enumerate(method(plan)):
        for rank, seen in enumerate(ranks):
            got_gradients, tensors, loss = seen[step]
            assert {name.removeprefix("query_encoder.") for name in got_gradients} == set(gradients)
            for name, gradient in gradients.items():
                assert_close(got_gradients[f"query_encoder.{name}"], gradient, name)
                # That of a bias in front of BatchNorm is 0.
                assert name == "0.3.bias" or gradient.abs().max() > 1e-4
            for name, weight in weights.items():
                assert_close(tensors[f"query_encoder.{name}"], weight, name)
                assert_close(tensors[f"key_encoder.{name}"], key_weights[name], name)
            for name, buffer in statistics[rank].items():
                assert_close(tensors[f"query_encoder.{name}"], buffer, name)
            for number, momentum in enumerate(momenta.values()):
                assert_close(tensors[f"momentum {number}"], momentum, str(number))
            assert_close(tensors["queue"], queue, "queue")
            assert loss == pytest.approx(float(losses[HALVES[rank]].mean()), abs=1e-5)


def simclr(plan):
    """SimCLR by its paper: one process, every share normalised by itself, each view against all others."""
    start = trainer_of(plan, ALONE).method
    network, fresh = start.encoder, dict(start.encoder.named_buffers())
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    learning = [name for name, p in network.named_parameters() if p.requires_grad]
    momenta = {name: torch.zeros_like(weights[name]) for name in learning}
    statistics = [{name: buffer.clone() for name, buffer in fresh.items()} for _ in HALVES]
    for step, (first, second, _) in enumerate(random_views(plan)):
        rate = plan.learning_rate * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / plan.steps)) / 2
        leaves = {name: weights[name].clone().requires_grad_(name in learning) for name in weights}
        shares = [
            functional_call(network, leaves | statistics[rank], (torch.cat([first[half], second[half]]),))
            for rank, half in enumerate(HALVES)
        ]
        # Image by image, its two views next to each other.
        views = F.normalize(torch.cat([torch.stack(share.chunk(2), dim=1) for share in shares]).flatten(0, 1))
        losses = []
        for i, view in enumerate(views):
            others = torch.cat([views[:i], views[i + 1 :]]) @ view / plan.options["temperature"]
            losses.append(others.logsumexp(0) - views[i ^ 1] @ view / plan.options["temperature"])
        losses = torch.stack(losses)
        gradients = dict(zip(learning, torch.autograd.grad(losses.mean(), [leaves[n] for n in learning]), strict=True))
        for name in learning:
            momenta[name] = 0.9 * momenta[name] + gradients[name] + plan.weight_decay * weights[name]
            weights[name] = weights[name] - rate * momenta[name]
        yield gradients, weights, statistics, losses.detach()


@pytest.mark.parametrize("update", ["all", "bn"])
def test_two_processes_do_what_simclr_says(update):
    plan = replace(PLAN, update=update, method="simclr", options={"temperature": 0.5}, weight_decay=0.01)
    ranks = in_processes(learn, plan)
    for step, (gradients, weights, statistics, losses) in enumerate(simclr(plan)):
        for rank, seen in enumerate(ranks):
            got_gradients, tensors, loss = seen[step]
            assert {name.removeprefix("encoder.") for name in got_gradients} == set(gradients)
            for name, gradient in gradients.items():
                assert_close(got_gradients[f"encoder.{name}"], gradient, name)
                assert name == "0.3.bias" or gradient.abs().max() > 1e-4
            for name, value in (weights | statistics[rank]).items():
                assert_close(tensors[f"encoder.{name}"], value, name)
            # Two views of each of four images.
            assert loss == pytest.approx(float(losses[8 * rank : 8 * (rank + 1)].mean()), abs=1e-5)


@pytest.mark.parametrize("update", ["all", "bn"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_all_that_learns_is_the_same_to_the_bit_in_all_processes(update, plan):
    first, second = in_processes(learn, replace(plan, update=update))
    for (gradients, tensors, _), (other_gradients, other_tensors, _) in zip(first, second, strict=True):
        assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
        differing = {name for name in tensors if not torch.equal(tensors[name], other_tensors[name])}
        assert {name.rpartition(".")[2] for name in differing} == {"running_mean", "running_var"}


def train(group, line, plan, network=tiny_backbone, report_every=1, folder=None, vanishing=()):
    """Progress, tensors in the end, what went into each step, and what was unreadable."""
    trainer, batches = trainer_of(plan, group, network), batches_of(plan, group, folder, vanishing)
    learn, taken = trainer.learn, []

    def looked_at(views):
        taken.append((views[0], *views.shuffled(1)))
        return learn(GivenViews(taken[-1][0], taken[-1][1], order=taken[-1][2]))

    trainer.learn = looked_at
    progress = list(trainer.train(batches, workers=0, report_every=report_every))
    return progress, tensors_of(trainer), taken, dict(batches.images.unreadable)


def train_smoothly(group, line, plan):
    """Progress, and tensors in the end, of networks without the kink of a ReLU.

    Some of a thousand units are always so near to 0 that rounding decides whether they pass a gradient on.
    """
    trainer = trainer_of(plan, group, plain_backbone)
    for module in list(trainer.method.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    progress = list(trainer.train(batches_of(plan, group), workers=0, report_every=4))
    return progress, tensors_of(trainer)


@pytest.mark.parametrize("method", METHODS)
def test_without_batch_norm_two_processes_train_as_one_does(method):
    options = {name: PLAN.options.get(name, value) for name, value in METHODS[method].presets["quick"].items()}
    # Small steps, as rounding grows with them.
    plan = replace(PLAN, steps=6, method=method, options=options, learning_rate=0.01)
    progress, tensors = train_smoothly(ALONE, None, plan)
    (first_progress, first), (other_progress, other) = in_processes(train_smoothly, plan)
    assert first_progress[-1].metrics.keys() == progress[-1].metrics.keys()
    assert without_speed(first_progress) == without_speed(other_progress)
    for (step, expected), (_, got) in zip(without_speed(progress), without_speed(first_progress), strict=True):
        # The spread is of the embeddings of a share each.
        assert got.pop("train/embedding_std", 0) == pytest.approx(expected.pop("train/embedding_std", 0), rel=0.2), step
        assert got == pytest.approx(expected, rel=1e-3), step
    for name, tensor in tensors.items():
        assert torch.equal(first[name], other[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=2e-3, atol=2e-5)
    learned = next(tensor for name, tensor in tensors.items() if name.endswith("encoder.0.0.weight"))
    assert not torch.equal(learned, plain_backbone()[0].weight)


def assert_same_views(alone, together):
    assert len(alone) == len(together[0]) == len(together[1])
    for (queries, keys, order), *parts in zip(alone, *together, strict=True):
        assert_views_equal(torch.cat([part[0] for part in parts]), queries)
        assert_views_equal(torch.cat([part[1] for part in parts]), keys)
        assert all(torch.equal(part[2], order) for part in parts)
        assert sorted(order.tolist()) == list(range(len(order)))
        assert not torch.equal(order, torch.arange(len(order)))


def assert_views_equal(one, other):
    """But for the rounding of a blur, which is of images in one batch."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_two_processes_see_the_views_that_one_sees():
    plan = replace(PLAN, steps=7)
    alone = train(ALONE, None, plan)[2]
    assert_same_views(alone, [taken for _, _, taken, _ in in_processes(train, plan)])
    for (queries, keys, order), (after, _, _) in pairwise(alone):
        assert not torch.equal(queries, after)
        assert not torch.equal(queries[order], keys)


VANISHING = (3, 21, 300)


@pytest.fixture
def folders(tmp_path):
    """Two equal folders of 400 pictures of noise."""
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (400, 8, 9, 3), dtype=np.uint8)):
        for name in ("alone", "together"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:03}.png")
    return tmp_path / "alone", tmp_path / "together"


def test_images_that_vanish_are_replaced_by_the_same_ones_and_known_to_all(folders):
    plan = replace(PLAN, steps=10, batch_size=40, options=PLAN.options | {"queue_size": 80}, subset=("crop", "flip"))
    alone = train(ALONE, None, plan, tiny_backbone, 5, folders[0], VANISHING)
    together = in_processes(train, plan, tiny_backbone, 5, folders[1], VANISHING)
    assert_same_views(alone[2], [taken for _, _, taken, _ in together])
    assert alone[3].keys() == set(VANISHING)
    assert all(unreadable.keys() == alone[3].keys() for _, _, _, unreadable in together)


def break_down(group, line, plan, *images):
    trainer = trainer_of(plan, group)
    try:
        list(trainer.train(batches_of(plan, group, *images), workers=0, report_every=2))
    except Exception as error:  # which one is the question
        return type(error).__name__, str(error)


def test_too_many_images_that_vanish_end_all_processes_alike(folders):
    first, second = in_processes(break_down, PLAN, folders[1], range(200))
    assert first == second
    assert first[0] == "HptError"
    assert "unreadable (at most 1% may be)" in first[1]


def test_bn_stats_are_the_mean_over_the_processes():
    plan = replace(PLAN, update="bn-stats", steps=3, subset=())
    (_, first, _, _), (_, second, _, _) = in_processes(train, plan)
    assert all(torch.equal(first[name], second[name]) for name in first)

    convolution = tiny_backbone()[0]
    batches = batches_of(plan, ALONE)
    mean, variance = torch.zeros(8), torch.ones(8)
    for task in batches.tasks(range(3)):
        with torch.no_grad():
            maps = convolution((batches[task].crops[0].float() / 255 - 0.5) / 0.25)
        mean = 0.9 * mean + 0.1 * torch.stack([maps[half].mean(dim=(0, 2, 3)) for half in HALVES]).mean(dim=0)
        variance = 0.9 * variance + 0.1 * torch.stack([maps[half].var(dim=(0, 2, 3)) for half in HALVES]).mean(dim=0)
    assert_close(first["query_encoder.0.1.running_mean"], mean)
    assert_close(first["query_encoder.0.1.running_var"], variance)
    assert int(first["query_encoder.0.1.num_batches_tracked"]) == 3
    before = trainer_of(plan, ALONE).method.state_dict()
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], first[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def go_on(group, line, plan, until, state, report_every, network=tiny_backbone):
    """Train from a state, which the first process has, until after a step; gives progress, tensors and state then."""
    trainer = trainer_of(plan, group, network)
    # As after whatever went before.
    torch.manual_seed(100 + group.rank)
    with torch.no_grad():
        for tensor in trainer.method.state_dict().values() if state else []:
            tensor.add_(group.rank + 1)
    trainer.restore(state if group.first else None)
    progress = []
    batches = batches_of(plan, group)
    for one in trainer.train(batches, workers=0, report_every=report_every):
        progress.append(one)
        if one.step == until:
            break
    trainer.agree(batches.images)
    return progress, tensors_of(trainer), trainer.state({}), trainer.step


def written(state, folder):
    """As it comes back from the disk."""
    folder.mkdir()
    state.write(folder)
    return TrainingState.read(folder)


@pytest.mark.parametrize(("update", "until"), [("all", 2), ("bn", 3), ("bn-stats", 2)])
def test_two_processes_go_on_to_the_same_bits(update, until, tmp_path):
    plan = replace(PLAN, steps=7, update=update)
    straight = in_processes(go_on, plan, 7, None, 3)
    interrupted = in_processes(go_on, plan, until, None, 3)
    resumed = in_processes(go_on, plan, 7, written(interrupted[0][2], tmp_path / "state"), 3)
    for rank in range(2):
        assert without_speed(interrupted[rank][0] + resumed[rank][0]) == without_speed(straight[rank][0])
        expected, got = straight[rank][1], resumed[rank][1]
        assert expected.keys() == got.keys()
        differing = {name for name in expected if not torch.equal(expected[name], got[name])}
        if rank == 0:
            assert not differing
        # The other's running statistics, which are kept nowhere, have gone on from the first one's.
        assert {name.rpartition(".")[2] for name in differing} <= {"running_mean", "running_var"}


def test_a_state_has_the_mean_of_what_all_have_gathered(tmp_path):
    plan = replace(PLAN, steps=7)
    every_step = in_processes(go_on, plan, 2, None, 1)[0][0]
    states = [state for _, _, state, _ in in_processes(go_on, plan, 2, None, 5)]
    for state in states:
        gathered = state.tensors["report/gathered"].tolist()
        for row, (_, metrics) in zip(gathered, every_step, strict=True):
            assert row == pytest.approx([metrics[f"train/{name}"] for name in ("loss", "top1", "embedding_std")])


@pytest.mark.parametrize(
    ("before", "after", "update", "network"),
    [(1, 2, "all", plain_backbone), (2, 1, "all", plain_backbone), (2, 3, "bn-stats", tiny_backbone)],
)
def test_a_state_of_another_number_of_processes_is_taken_up(before, after, update, network, tmp_path):
    options = PLAN.options | {"queue_size": 24, "bn_splits": 6}
    plan = replace(PLAN, steps=7, update=update, batch_size=12, options=options)

    def run(size, *values):
        return [go_on(ALONE, None, *values)] if size == 1 else in_processes(go_on, *values, size=size)

    (_, at_4, state, _), *_ = run(before, plan, 4, None, 5, network)
    state = written(state, tmp_path / "state")
    for _, taken_up, _, step in run(after, replace(plan, steps=4), 4, state, 5, network):
        assert step == 4
        assert taken_up.keys() == at_4.keys()
        assert all(torch.equal(taken_up[name], tensor) for name, tensor in at_4.items())
    resumed = run(after, plan, 7, state, 5, network)
    straight = run(after, plan, 7, None, 5, network)
    # Where nothing depends on which images share a batch, it goes on as if the number had never been another.
    for progress, tensors, _, _ in resumed:
        assert [step for step, metrics in progress if metrics] == [5, 7]
        for name, tensor in straight[0][1].items() if update == "all" else []:
            torch.testing.assert_close(tensors[name], tensor, rtol=2e-3, atol=2e-5)


def test_a_state_before_the_first_step_is_taken_up(tmp_path):
    trainer = trainer_of(PLAN, ALONE)
    state = written(trainer.state({}), tmp_path / "state")
    expected = tensors_of(trainer)
    for progress, tensors, _, _ in in_processes(go_on, replace(PLAN, steps=0), 0, state, 5):
        assert progress == []
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in expected.items())
    straight, resumed = (in_processes(go_on, PLAN, 4, start, 5)[0] for start in (None, state))
    assert all(torch.equal(tensor, resumed[1][name]) for name, tensor in straight[1].items())


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def lose_one(group, line, plan, moment):
    """The second process is killed at a moment of its training; the first one says what it raises."""
    if group.rank == 1 and moment == "start":
        die()
    try:
        trainer = trainer_of(plan, group)
        if group.rank == 1:
            _let_die(trainer, moment)
        for _ in trainer.train(batches_of(plan, group), workers=0, report_every=2):
            pass
    except LostProcessError as error:
        return str(error)
    return "noticed nothing"


def _let_die(trainer, moment):
    if moment == "views":
        trainer.finish = die
    elif moment == "forward":
        # In its second step: then torch has news of the first backward pass to exchange.
        model = trainer._model

        def forward(*views):
            if trainer.step == 1:
                die()
            return model(*views)

        trainer._model = forward
    elif moment == "backward":
        next(trainer.method.query_encoder.parameters()).register_hook(die)
    elif moment == "statistics":
        trainer.backbone.register_forward_hook(die)
    elif moment == "report":
        trainer._summarise = die


@pytest.mark.parametrize(
    ("update", "moment"),
    [
        *[("all", moment) for moment in ("start", "views", "forward", "backward", "report")],
        ("bn-stats", "statistics"),
    ],
)
def test_a_process_that_dies_in_the_middle_is_noticed_in_one_line(update, moment):
    said, other = in_processes(lose_one, replace(PLAN, update=update), moment, seconds=30)
    assert other == KILLED
    assert said.startswith("another process of this training has ended (")
    assert "\n" not in said


def test_a_loss_that_is_no_number_is_said_by_all():
    first, second = in_processes(break_down, replace(PLAN, learning_rate=1e30, steps=20))
    assert first == second
    assert first[0] == "HptError"
    assert "lower learning_rate" in first[1]
