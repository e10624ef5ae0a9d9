"""What only a GPU can show. The rest of the tests runs the same code on the processor."""

from __future__ import annotations

import gc
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch

import hpt_mlflow
from hpt_mlflow.augment import on_gpu
from hpt_mlflow.augment.draws import blur_radius, draw_finish
from hpt_mlflow.augment.multicrop import LocalViews
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.augment.views import finish_image_by_image, finish_views
from hpt_mlflow.data.batches import ViewBatches
from hpt_mlflow.data.gpu_images import images_on_gpu
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.loading import iterate
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.objectives.base import make_judge
from hpt_mlflow.evaluation.probe import fit_probe
from hpt_mlflow.methods import METHODS, load_method
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.stages.tune import tune
from hpt_mlflow.training.arithmetic import choose_precision
from hpt_mlflow.training.loop import Trainer
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.training.state import TrainingState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
STATISTICS = ChannelStatistics((0.3, 0.3, 0.3), (0.35, 0.35, 0.35))
SIZE = 32
PLAN = Plan(
    steps=6,
    batch_size=64,
    learning_rate=0.03,
    warmup_steps=2,
    weight_decay=1e-4,
    options={"key_momentum": 0.99, "temperature": 0.2, "queue_size": 256, "bn_splits": 4},
    seed=3,
)


@pytest.fixture(scope="module")
def images():
    dataset = open_dataset("builtin:digits")
    return Images(dataset, np.arange(len(dataset)), smallest_side=4096)


def backbone():
    torch.manual_seed(0)
    return build_backbone(Architecture("resnet18", SIZE, small_stem=True))


def make_trainer(plan=PLAN, device=CUDA):
    return Trainer(*backbone(), plan, STATISTICS, device)


def steps_of(trainer, images, report_every=1):
    plan = trainer.plan
    method = load_method(plan.method)
    local = LocalViews(method.local_views, 14)
    batches = ViewBatches(
        images, plan.batch_size, SIZE, plan.subset, plan.strengths, plan.seed, views=method.views, local=local
    )
    return trainer.train(batches, workers=0, report_every=report_every)


def losses(plan, images, device=CUDA):
    return [metrics["train/loss"] for _, metrics in steps_of(make_trainer(plan, device), images)]


@pytest.fixture
def exact(monkeypatch):
    """Float32 as a processor has it: no TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_views_are_those_of_the_processor():
    rng = np.random.default_rng(0)
    crops = torch.from_numpy(rng.integers(0, 256, (64, 3, SIZE, SIZE), dtype=np.uint8))
    draws = draw_finish(rng, 64, AUGMENTATIONS, Strengths())
    mean, std = torch.tensor(STATISTICS.mean), torch.tensor(STATISTICS.std)
    expected = finish_image_by_image(crops, draws, blur_radius(Strengths()), mean, std)
    got = finish_views(crops.to(CUDA), draws, Strengths(), mean.to(CUDA), std.to(CUDA))
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu().contiguous(), expected.contiguous(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_kernels_agree_with_torch_and_loops(dtype):
    device = torch.zeros(1, device=CUDA).device
    for side in (32, 224):
        assert on_gpu.finish_error(device, dtype, side) < 1e-4
        assert on_gpu.cut_error(device, dtype, side) <= 0
    assert on_gpu.finishes(device, dtype)
    assert on_gpu.cuts(device, dtype)


@pytest.mark.parametrize("size", [32, 224])
def test_crops_are_cut_on_the_gpu_as_on_the_processor(images, size):
    held = images_on_gpu(images, CUDA)
    assert held is not None
    given = images, 64, size, AUGMENTATIONS, Strengths(), 0
    for (expected,), (got,) in (
        [list(iterate(ViewBatches(*given, gpu_images=where), range(step, step + 1), 0, CUDA)) for where in (None, held)]
        for step in range(3)
    ):
        assert got.crops.device.type == "cuda"
        difference = (got.crops.cpu().int() - expected.crops.cpu().int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).double().mean() < 0.01


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("graph", [False, True])
def test_a_training_on_images_on_the_gpu_is_the_same(images, graph):
    plan = replace(PLAN, graph=graph)
    held = images_on_gpu(images, CUDA)
    batches = ViewBatches(images, 64, SIZE, plan.subset, plan.strengths, plan.seed, gpu_images=held)
    got = [metrics["train/loss"] for _, metrics in make_trainer(plan).train(batches, 0, 1)]
    assert got == pytest.approx(losses(plan, images), abs=0.05)


@pytest.mark.usefixtures("exact")
def test_a_training_goes_as_on_the_processor(images):
    assert losses(PLAN, images) == pytest.approx(losses(PLAN, images, CPU), abs=0.05)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", METHODS)
def test_a_training_by_any_method_goes_as_on_the_processor(images, method):
    options = {name: PLAN.options.get(name, value) for name, value in METHODS[method].presets["quick"].items()}
    plan = replace(PLAN, method=method, options=options, learning_rate=0.01)
    expected = losses(plan, images, CPU)
    assert losses(plan, images) == pytest.approx(expected, abs=0.05 * max(expected))
    half = losses(replace(plan, precision="bfloat16"), images)
    assert half == pytest.approx(expected, abs=0.1 * max(expected))


@pytest.mark.usefixtures("exact")
def test_a_training_goes_on_from_its_state(images, tmp_path):
    expected = losses(PLAN, images)
    first, second = make_trainer(), make_trainer(replace(PLAN, seed=4))
    for step, _ in steps_of(first, images):
        if step == 3:
            break
    state = first.state({})
    state.write(tmp_path)
    second.restore(TrainingState.read(tmp_path))
    restored = second.state({})
    assert restored.step == 3
    assert all(torch.equal(restored.tensors[name], tensor) for name, tensor in state.tensors.items())
    second.plan = PLAN
    # Not to the bit: a GPU adds in whatever order it likes.
    assert [m["train/loss"] for _, m in steps_of(second, images)] == pytest.approx(expected[3:], abs=0.05)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_the_same(images, precision):
    assert losses(replace(PLAN, precision=precision), images) == pytest.approx(losses(PLAN, images), abs=0.1)


def test_a_compiled_training_is_the_same(images):
    assert losses(replace(PLAN, compile=True), images) == pytest.approx(losses(PLAN, images), abs=0.1)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adamw", "learning_rate": 1e-3, "statistics": "keep"}])
def test_a_step_as_a_graph_is_the_step(images, method, optimizer):
    options = {name: PLAN.options.get(name, value) for name, value in METHODS[method].presets["quick"].items()}
    plan = replace(PLAN, method=method, options=options, **optimizer)
    trainer = make_trainer(replace(plan, graph=True))
    got = [metrics["train/loss"] for _, metrics in steps_of(trainer, images)]
    assert trainer._graph is not None
    expected = losses(plan, images)
    assert got == pytest.approx(expected, abs=0.05 * max(1, *expected))


@pytest.mark.usefixtures("exact")
def test_a_training_by_a_graph_goes_on_from_its_state(images):
    plan = replace(PLAN, graph=True)
    expected = losses(plan, images)
    first, second = make_trainer(plan), make_trainer(plan)
    for step, _ in steps_of(first, images):
        if step == 3:
            break
    second.restore(first.state({}))
    assert [m["train/loss"] for _, m in steps_of(second, images)] == pytest.approx(expected[3:], abs=0.05)


def test_a_batch_that_is_too_large_is_told_with_one_that_fits(images):
    # What earlier tests have left behind would count.
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4 * 2**30 / torch.cuda.mem_get_info()[1])
    try:
        network = build_backbone(Architecture("resnet50", 224))
        plan = replace(PLAN, batch_size=256)
        trainer = Trainer(*network, plan, STATISTICS, CUDA)
        batches = ViewBatches(images, 256, 224, plan.subset, plan.strengths, 0)
        with pytest.raises(HptError, match=r"^batch_size: cuda has no memory for steps of 256 images.* or less$"):
            list(trainer.train(batches, 0, 1))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_bfloat16_is_chosen_where_the_gpu_has_it():
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert choose_precision("auto", CUDA) == ("bfloat16" if native else "float32")


@pytest.mark.parametrize("objective", ["probe", "knn", "rotation"])
def test_a_backbone_is_judged_as_on_the_processor(images, objective):
    labels = images.dataset.labels
    split = images.dataset.split(0)
    scores = []
    for device in (CPU, CUDA):
        reader = FeatureReader(images, SIZE, STATISTICS, device)
        scores.append(make_judge(objective, reader, split, labels).score(backbone()[0].to(device)))
    assert scores[1] == pytest.approx(scores[0], abs=0.015)


def test_a_probe_is_fitted_as_on_the_processor():
    torch.manual_seed(0)
    features, labels = torch.randn(300, 20).numpy(), torch.randint(5, (300,)).numpy()
    features[np.arange(300), labels] += 2
    parts = (features[:200], labels[:200], features[200:], labels[200:], 5)
    here, there = fit_probe(*parts), fit_probe(*parts, CUDA)
    assert there.head.weight.device.type == "cpu"
    assert there.validation_score == pytest.approx(here.validation_score, abs=0.02)


def test_the_stages_and_a_search_run_on_the_gpu(store):
    short = {"data": "builtin:digits", "steps": 4, "batch_size": 64}
    base = hpt_mlflow.pretrain(arch="resnet18", image_size=SIZE, **short)
    target = hpt_mlflow.adapt(parent=base.model_uri, **short)
    for made in (base, target):
        run = mlflow.get_run(made.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["settings/device"].startswith("cuda")
        assert run.data.params["settings/gpu_images"] == "True"
    for protocol in ({"protocol": "fast"}, {"protocol": "finetune", "steps": 4}):
        result = hpt_mlflow.evaluate(model=target.model_uri, data="builtin:digits", **protocol)
        assert mlflow.get_run(result.run_id).info.status == "FINISHED"
    found = tune(parent=base.model_uri, augment="crop,flip", workers=2, study="gpu", trial_steps=8, **short)
    assert mlflow.get_run(found.run_id).data.tags["hpt.augment"]


def test_backbones_run(images):
    for arch in ("shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet50"):
        network, size = build_backbone(Architecture(arch, SIZE))
        trainer = Trainer(network, size, replace(PLAN, steps=2, precision="bfloat16"), STATISTICS, CUDA)
        assert all(np.isfinite(metrics["train/loss"]) for _, metrics in steps_of(trainer, images))
