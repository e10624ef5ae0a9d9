"""The training loop: a generator that hands out what there is to know, and leaves keeping it to its caller."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpt_mlflow.augment.draws import FinishDraws, draw_finish
from hpt_mlflow.augment.views import finish_views
from hpt_mlflow.data.batches import Batch, ViewBatches, iterate
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.backbone import batch_norms
from hpt_mlflow.models.moco import MoCo, MoCoOutput, freeze
from hpt_mlflow.models.randomness import seeded
from hpt_mlflow.training.arithmetic import DTYPES
from hpt_mlflow.training.diagnostics import effective_rank, embedding_std
from hpt_mlflow.training.padding import keep_unseen_weights
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.training.processes import ALONE, Group, losses
from hpt_mlflow.training.state import TrainingState, put_state, share_state, take_state


class Progress(NamedTuple):
    """A step that was done, counted from 1, and metrics over the steps since the last report where one is due."""

    step: int
    metrics: dict[str, float]


class Trainer:
    """MoCo, its optimiser, and how far the two have come in a stage; the same in every process of a group.

    Attributes:
        moco: on the device, in training mode.
        optimizer: None where nothing learns (`update=bn-stats`).
        step: optimiser steps done.
        mean, std: channel statistics on the device, float32 (3,).
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        plan: Plan,
        statistics: ChannelStatistics,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        freeze(backbone, plan.update)
        bn_splits = plan.bn_splits // group.size
        with seeded(plan.seed):
            moco = MoCo(backbone, feature_size, plan.queue_size, plan.key_momentum, plan.temperature, bn_splits)
        self.moco = moco.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = None if plan.update == "bn-stats" else _sgd(self.moco, plan)
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")
        self.plan = plan
        self.device = device
        self.group = group
        self.step = 0
        # Loss, top-1 and spread of the embeddings of each step since the last report.
        self._gathered: list[Tensor] = []
        self._unreadable: list[tuple[int, str]] = []
        self._keeps_unseen = False
        self.mean = torch.tensor(statistics.mean, device=device)
        self.std = torch.tensor(statistics.std, device=device)
        self._own = group.part(plan.batch_size)
        if plan.compile:
            _compile(self.moco)
        self._model = _averaging_gradients(self.moco) if group.size > 1 and self.optimizer else self.moco

    def train(self, batches: ViewBatches, workers: int, report_every: int) -> Iterator[Progress]:
        """Train from the present step to the last one of the plan.

        Args:
            batches: two crops of the images of each step.
            workers: processes that decode images.
            report_every: steps between reports; the last step always reports.

        Yields:
            Every step, after it was done.

        Raises:
            HptError: the loss is no longer a finite number, or too many images turned out unreadable.
        """
        start, started_at = self.step, time.perf_counter()
        for batch in iterate(batches, range(self.step, self.plan.steps), workers, self.device):
            self._do_step(batch)
            self._unreadable += batch.unreadable
            metrics = {}
            reports = self.step % report_every == 0 or self.step == self.plan.steps
            if reports or self.group.size == 1:
                self._report_unreadable(batches.images)
            if reports:
                metrics = self._summarise()
                now = time.perf_counter()
                metrics["train/images_per_second"] = (self.step - start) * self.plan.batch_size / (now - started_at)
                start, started_at = self.step, now
                self._gathered.clear()
            yield Progress(self.step, metrics)

    def state(self, unreadable: Mapping[int, str]) -> TrainingState:
        """A copy of all that an exact resume needs. In a group, every process must have called `agree` before.

        Args:
            unreadable: images that turned out unreadable, to go with it.
        """
        return take_state(self.step, self.moco, self.optimizer, self.scaler, self._rows(), unreadable)

    def agree(self, images: Images) -> None:
        """Make what the next report has gathered so far the same in all processes, so that one can keep it for all."""
        self._gathered = list(self.group.mean(self._rows()))
        self._report_unreadable(images)

    def restore(self, state: TrainingState | None) -> None:
        """Go on from a training state, which the first process has; raises HptError where it is of another training."""
        gathered = self._rows()
        if state:
            gathered = put_state(state, self.moco, self.optimizer, self.scaler).to(self.device)
            self.step = state.step
        self.step, gathered = share_state(self.group, self.step, self.moco, self.optimizer, self.scaler, gathered)
        self._gathered = list(gathered)

    def learn(self, query_views: Tensor, key_views: Tensor, order: Tensor) -> MoCoOutput:
        """One step of MoCo (algorithm 1 of its paper).

        Args:
            query_views: one view of each image of this process, normalised, on the device, float32 (n, 3, size, size).
            key_views: this process's share of the other views of all images in their shuffled order, likewise.
            order: of the keys: which image each belongs to, int64 (N,), all processes together.
        """
        optimizer = self.optimizer
        assert optimizer is not None, "nothing learns with update=bn-stats"
        if self.plan.precision == "bfloat16" and self.device.type == "cpu" and not self._keeps_unseen:
            keep_unseen_weights(self.moco.backbone, query_views[:2])
            self._keeps_unseen = True
        for settings in optimizer.param_groups:
            settings["lr"] = self.plan.learning_rate_at(self.step)
        self.moco.update_key_encoder()
        with self._autocast():
            shuffled = self.group.gather(self.moco.encode_keys(key_views))  # N x 128
            keys = torch.empty_like(shuffled).index_copy_(0, order, shuffled)
            with losses():
                output: MoCoOutput = self._model(query_views, keys[self._own])
        optimizer.zero_grad()
        with losses():
            self.scaler.scale(output.loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.moco.enqueue(keys, self.step)
        return output

    def views(self, crops: Tensor, draws: FinishDraws) -> Tensor:
        """Views of crops, uint8 (n, 3, size, size), as the network takes them: float32, normalised."""
        return finish_views(crops, draws, self.plan.strengths, self.mean, self.std)

    def draw_views(self, rng: np.random.Generator) -> FinishDraws:
        """Random numbers for one view of each image of a batch, of all processes together."""
        return draw_finish(rng, self.plan.batch_size, self.plan.subset, self.plan.strengths)

    def _do_step(self, batch: Batch) -> None:
        """Views of a batch, and what is learned from them. The draws of a step do not depend on the steps before it."""
        rng = np.random.default_rng((self.plan.seed, self.step, 1))
        # Layers such as dropout draw in the step.
        with seeded(int(rng.integers(2**62)) + self.group.rank, self.device):
            self._learn_from(batch, rng)
        self.step += 1

    def _learn_from(self, batch: Batch, rng: np.random.Generator) -> None:
        query_draws, key_draws, order = (
            self.draw_views(rng),
            self.draw_views(rng),
            rng.permutation(self.plan.batch_size),
        )
        crops = batch.crops.to(self.device, non_blocking=True)
        queries = self.views(crops[0], query_draws.part(self._own))
        if self.optimizer is None:
            self._refresh_statistics(queries)
        else:
            places = torch.from_numpy(order).to(self.device)
            shuffled = self.group.gather(crops[1])[places[self._own]]
            output = self.learn(queries, self.views(shuffled, key_draws.part(order[self._own])), places)
            self._gathered.append(torch.stack((output.loss.detach(), output.top1, embedding_std(output.queries))))

    def _report_unreadable(self, images: Images) -> None:
        """Tell `images` what any process has found unreadable since the last time."""
        found = [tuple(pair) for part in self.group.collect(self._unreadable) for pair in part]
        self._unreadable.clear()
        images.report_unreadable(found)

    @torch.no_grad()
    def _refresh_statistics(self, views: Tensor) -> None:
        """A forward pass in training mode, which refreshes BatchNorm's running statistics and nothing else."""
        with self._autocast():
            self.moco.backbone(views)
        for layer in batch_norms(self.moco.backbone):
            for running in (layer.running_mean, layer.running_var):
                if running is not None:
                    running.copy_(self.group.mean(running))

    def _autocast(self) -> torch.autocast:
        precision = self.plan.precision
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "float32")

    def _rows(self) -> Tensor:
        return torch.stack(self._gathered) if self._gathered else torch.empty(0, 3, device=self.device)

    def _summarise(self) -> dict[str, float]:
        """Means over the steps since the last report, and how many dimensions the keys use."""
        if not self._gathered:
            return {}
        # Over the processes first, as `agree` does: a resume in between must not change a bit.
        loss, top1, std = self.group.mean(self._rows()).mean(dim=0).tolist()
        if not math.isfinite(loss):
            raise HptError(
                f"the loss became {loss} between steps {self.step - len(self._gathered) + 1} and {self.step}: lower "
                f"learning_rate (now {self.plan.learning_rate}), raise temperature (now {self.plan.temperature}), or "
                f"use precision float32 (now {self.plan.precision})"
            )
        keys = self.moco.queue[: self.step * self.plan.batch_size]
        return {
            "train/loss": loss,
            "train/top1": top1,
            "train/embedding_std": std,
            "train/effective_rank": effective_rank(keys),
            "train/learning_rate": self.plan.learning_rate_at(self.step - 1),
        }


def _compile(moco: MoCo) -> None:
    """Let torch.compile make the encoders faster, in place, so that names in a state stay. The first step waits."""
    import torch._dynamo

    # What cannot be compiled is computed as it was.
    torch._dynamo.config.suppress_errors = True
    moco.query_encoder.compile(dynamic=False)
    moco.key_encoder.compile(dynamic=False)


def _averaging_gradients(moco: MoCo) -> nn.Module:
    """A module whose backward pass leaves the mean gradients of all processes."""
    with warnings.catch_warnings(), losses():
        # Newer versions of torch have another name for `broadcast_buffers`, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(moco, broadcast_buffers=False, gradient_as_bucket_view=True)


def _sgd(moco: MoCo, plan: Plan) -> torch.optim.SGD:
    """SGD with momentum 0.9 (paper, section 4.1) over what may learn."""
    learning = [parameter for parameter in moco.query_encoder.parameters() if parameter.requires_grad]
    fused = learning[0].device.type in ("cpu", "cuda")
    return torch.optim.SGD(learning, lr=plan.learning_rate, momentum=0.9, weight_decay=plan.weight_decay, fused=fused)
