"""One measurement of a training's speed, in a process of its own: prints images per second and peak memory as JSON.

benchmarks/training_speed.py calls it; by hand:  python benchmarks/one_speed.py bare --arch resnet50
"""

from __future__ import annotations

import copy
import json
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import nn

CLIPART = Path(__file__).resolve().parents[2] / "shared" / "data" / "clipart"
# The first steps compile kernels and fill caches.
WARM_UP_STEPS = 3
WARM_UP_REPORTS = 5
# Enough for 12,000 photographs of 500 x 375.
CACHED_BYTES = 8 << 30


@click.command()
@click.argument(
    "what",
    type=click.Choice(["bare", "whole", "lightly", "features", "inference", "loading", "views", "nvjpeg"]),
)
@click.option("--data", default=str(CLIPART) if CLIPART.is_dir() else "builtin:noto", show_default=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--steps", default=30, show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--update", default="all", show_default=True, help="Of bare and whole: as of adapt.")
@click.option("--nproc", default=1, show_default=True, help="Of whole.")
@click.option("--workers", type=int, help="Of whole and loading; default: as the stage chooses.")
@click.option("--cached", is_flag=True, help="Of loading: from images that are decoded already.")
@click.option("--on-gpu", is_flag=True, help="Of loading: from decoded images in the memory of the GPU.")
@click.option("--plain", is_flag=True, help="Of views: by operations of torch, without kernels.")
@click.option("--compile", "compiled", default="off", show_default=True)
@click.option("--graph", default="auto", show_default=True, help="As cuda_graph of a stage.")
@click.option("--device", default="auto", show_default=True)
def main(what: str, **options) -> None:
    """bare: the step on views in memory; whole: a training stage; lightly: the MoCo example of lightly; features:
    frozen ones of images from their files; inference: the network alone; loading: crops of two views per image, from
    their files or from the cache, without a network; views: colours, blur, flip and normalising of both views of crops
    in memory; nvjpeg: decoding whole JPEG files on the GPU, by torchvision, without crops.
    """
    ways = {
        "bare": bare_step,
        "whole": whole_stage,
        "lightly": lightly_example,
        "features": frozen_features,
        "inference": inference,
        "loading": loading,
        "views": views_alone,
        "nvjpeg": nvjpeg,
    }
    speed = ways[what](**options)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children) / 2**10
    if torch.cuda.is_available() and options["device"] != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"images_per_second": speed, "peak_mib": peak}))


class Given:
    """Views that are there already, and an order for those that are shuffled."""

    def __init__(self, views: list[torch.Tensor], order: torch.Tensor) -> None:
        self.views = views
        self.order = order

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.views[number]

    def shuffled(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As they are: they are random numbers."""
        return self.views[number], self.order


def bare_step(arch, image_size, batch_size, steps, precision, update, compiled, graph, device, **_) -> float:
    """Images per second of the step alone."""
    from hpt_mlflow.data.statistics import ChannelStatistics
    from hpt_mlflow.models.architecture import Architecture
    from hpt_mlflow.models.backbone import build_backbone
    from hpt_mlflow.stages.processes.device import resolve_device
    from hpt_mlflow.training.arithmetic import choose_compile, choose_graph, choose_precision
    from hpt_mlflow.training.graph import capture_on_gpu
    from hpt_mlflow.training.loop import Trainer
    from hpt_mlflow.training.plan import PRESETS

    target = resolve_device(device)
    backbone, feature_size = build_backbone(Architecture(arch, image_size))
    plan = replace(
        PRESETS["quick"].pretrain,
        batch_size=batch_size,
        steps=10**6,
        update=update,
        precision=choose_precision(precision, target),
        compile=choose_compile(compiled, steps, target),
    )
    trainer = Trainer(backbone, feature_size, plan, ChannelStatistics((0.5,) * 3, (0.25,) * 3), target)
    shape = (batch_size, 3, image_size, image_size)
    views = [torch.randn(shape, device=target).to(memory_format=torch.channels_last) for _ in range(2)]
    given = Given(views, torch.randperm(batch_size).to(target))

    losses = [torch.zeros((), device=target)]

    def step() -> torch.Tensor:
        losses[0].copy_(trainer.learn(given).loss.detach())
        return losses[0]

    if choose_graph(graph, plan, target, 1):
        replay = capture_on_gpu(step)

        def step() -> torch.Tensor:
            replay()
            return losses[0]

    return images_per_second(step, batch_size, steps)


def images_per_second(step: Callable[[], torch.Tensor], batch_size: int, steps: int) -> float:
    for _ in range(WARM_UP_STEPS):
        float(step())
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    float(loss)  # waits for the device
    return steps * batch_size / (time.perf_counter() - start)


def whole_stage(
    data, arch, image_size, batch_size, steps, precision, update, nproc, workers, compiled, graph, device, **_
) -> float:
    """Images per second of the stage as users run it. Opening the dataset and the first steps are left out.

    By an update that leaves weights as they are, the stage adapts a Base that was trained for one step.
    """
    from mlflow.tracking import MlflowClient

    import hpt_mlflow

    settings = {"data": data, "batch_size": batch_size, "precision": precision, "device": device, "workers": workers}
    timed = settings | {"steps": steps, "compile": compiled, "cuda_graph": graph, "nproc": nproc}
    network = {"arch": arch, "image_size": image_size}
    with temporary_store():
        if update == "all":
            result = hpt_mlflow.pretrain(**network, **timed)
        else:
            base = hpt_mlflow.pretrain(**network, **settings, steps=1)
            result = hpt_mlflow.adapt(parent=base.model_uri, update=update, judge="none", **timed)
        history = MlflowClient().get_metric_history(result.run_id, "train/images_per_second")
    rates = [metric.value for metric in sorted(history, key=lambda metric: metric.step)][WARM_UP_REPORTS:]
    return statistics.harmonic_mean(rates)


def frozen_features(data, arch, image_size, batch_size, device, **_) -> float:
    """Images per second of frozen features, from files that have been read once."""
    import numpy as np

    from hpt_mlflow.data.images import Images
    from hpt_mlflow.data.sources import open_dataset
    from hpt_mlflow.data.statistics import ChannelStatistics
    from hpt_mlflow.evaluation.features import FeatureReader, feature_precision
    from hpt_mlflow.models.architecture import Architecture
    from hpt_mlflow.models.backbone import build_backbone
    from hpt_mlflow.stages.processes.device import resolve_device

    target = resolve_device(device)
    dataset = open_dataset(data)
    images = Images(dataset, np.arange(len(dataset)), image_size, cache_gib=0)
    reader = FeatureReader(
        images,
        image_size,
        ChannelStatistics((0.5,) * 3, (0.25,) * 3),
        target,
        batch_size,
        precision=feature_precision("auto", target),
    )
    backbone = build_backbone(Architecture(arch, image_size))[0].to(target)
    reader.features(backbone, images.indices[: 2 * batch_size])
    start = time.perf_counter()
    reader.features(backbone, images.indices)
    return len(images.indices) / (time.perf_counter() - start)


def inference(arch, image_size, batch_size, steps, device, **_) -> float:
    """Images per second of a network in evaluation mode, by the precision that frozen features have."""
    from hpt_mlflow.evaluation.features import FrozenNetwork, feature_precision
    from hpt_mlflow.models.architecture import Architecture
    from hpt_mlflow.models.backbone import build_backbone
    from hpt_mlflow.stages.processes.device import resolve_device

    target = resolve_device(device)
    network = FrozenNetwork(build_backbone(Architecture(arch, image_size))[0].to(target))
    batch = torch.randn(batch_size, 3, image_size, image_size, device=target).to(memory_format=torch.channels_last)
    precision = feature_precision("auto", target)
    return images_per_second(lambda: network.features(batch, precision).sum(), batch_size, steps)


def loading(data, image_size, batch_size, steps, workers, cached, on_gpu, device, **_) -> float:
    """Images per second of the crops of a training, without a network."""
    import numpy as np

    from hpt_mlflow.augment.multicrop import NONE, useful_side
    from hpt_mlflow.data.batches import ViewBatches
    from hpt_mlflow.data.gpu_images import images_on_gpu
    from hpt_mlflow.data.images import Images
    from hpt_mlflow.data.loading import default_workers, iterate
    from hpt_mlflow.data.sources import open_dataset
    from hpt_mlflow.stages.processes.device import resolve_device
    from hpt_mlflow.training.plan import PRESETS

    target, plan = resolve_device(device), PRESETS["quick"].pretrain
    dataset = open_dataset(data)
    side = useful_side(image_size, plan.strengths, NONE)
    images = Images(dataset, np.arange(len(dataset)), side, memory_limit_bytes=CACHED_BYTES if cached or on_gpu else 0)
    held = images_on_gpu(images, target) if on_gpu else None
    if on_gpu and held is None:
        raise click.ClickException("the images are not held by a GPU")
    workers = default_workers(images, target, 1) if workers is None else workers
    batches = ViewBatches(images, batch_size, image_size, plan.subset, plan.strengths, seed=0, gpu_images=held)
    loaded = iterate(batches, range(WARM_UP_STEPS + steps), workers, target)
    return images_per_second(lambda: next(loaded).crops[0, 0, 0, 0, 0], batch_size, steps)


def views_alone(image_size, batch_size, steps, plain, device, **_) -> float:
    """Images per second of both views of crops that are on the device, by the default augmentations."""
    import numpy as np

    from hpt_mlflow.augment.draws import blur_radius, draw_finish
    from hpt_mlflow.augment.in_batches import Applied, finish_plainly, table_of
    from hpt_mlflow.augment.on_gpu import finish_by_table
    from hpt_mlflow.stages.processes.device import resolve_device
    from hpt_mlflow.training.plan import PRESETS

    target, plan = resolve_device(device), PRESETS["quick"].pretrain
    crops = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=target)
    draws = draw_finish(np.random.default_rng(0), batch_size, plan.subset, plan.strengths)
    table = torch.from_numpy(table_of(draws, 3)).to(target)
    mean, std = torch.full((3,), 0.5, device=target), torch.full((3,), 0.25, device=target)
    finish = finish_plainly if plain else finish_by_table
    given = crops, table, Applied.of_subset(plan.subset), blur_radius(plan.strengths), mean, std

    def both() -> torch.Tensor:
        finish(*given)
        return finish(*given)[0, 0, 0, 0]

    return images_per_second(both, batch_size, steps)


def nvjpeg(data, batch_size, steps, **_) -> float:
    """Images per second of decoding JPEG files, read before, on the GPU."""
    from itertools import cycle, islice

    from torchvision.io import decode_jpeg

    files = sorted(Path(data).rglob("*.jpg"))[: steps * batch_size]
    contents = cycle([torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files])

    def decode() -> torch.Tensor:
        return decode_jpeg(list(islice(contents, batch_size)), device="cuda")[-1][0, 0, 0]

    return images_per_second(decode, batch_size, steps)


@contextmanager
def temporary_store() -> Iterator[None]:
    """An empty MLflow store, and an empty cache, for what is trained in the block."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPT_CACHE"] = f"{folder}/cache"
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("bench", artifact_location=f"{folder}/artifacts")
        mlflow.set_experiment("bench")
        yield


def lightly_example(data, arch, image_size, batch_size, steps, device, **_) -> float:
    """Images per second of examples/pytorch/moco.py of lightly 1.5: its transforms, loader and step."""
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    target = torch.device("cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
    network = getattr(torchvision.models, arch)()
    width = list(network.children())[-1].in_features
    backbone = nn.Sequential(*list(network.children())[:-1]).to(target)
    head = MoCoProjectionHead(width, width, 128).to(target)
    backbone_momentum, head_momentum = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(backbone_momentum)
    deactivate_requires_grad(head_momentum)
    dataset = LightlyDataset(data, transform=MoCoV2Transform(input_size=image_size))
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=8)
    criterion = NTXentLoss(memory_bank_size=(4096, 128))
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)

    def batches():
        while True:
            yield from loader

    loaded = batches()

    def step() -> torch.Tensor:
        (x_query, x_key), _, _ = next(loaded)
        update_momentum(backbone, backbone_momentum, m=0.996)
        update_momentum(head, head_momentum, m=0.996)
        query = head(backbone(x_query.to(target)).flatten(start_dim=1))
        key = head_momentum(backbone_momentum(x_key.to(target)).flatten(start_dim=1)).detach()
        loss = criterion(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return images_per_second(step, batch_size, steps)


if __name__ == "__main__":
    main()
