"""The training loop: a generator that hands out what there is to know, and leaves keeping it to its caller."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.augment.views import finish_views
from hpt_mlflow.data.batches import ViewBatches, iterate
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.moco import MoCo, MoCoOutput, freeze
from hpt_mlflow.training.diagnostics import effective_rank, embedding_std
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.training.precision import DTYPES
from hpt_mlflow.training.state import TrainingState, put_state, take_state


class Progress(NamedTuple):
    """A step that was done, counted from 1, and metrics over the steps since the last report where one is due."""

    step: int
    metrics: dict[str, float]


class Trainer:
    """MoCo, its optimiser, and how far the two have come in a stage.

    Attributes:
        moco: on the device, in training mode.
        optimizer: None where nothing learns (`update=bn-stats`).
        step: optimiser steps done.
        mean, std: channel statistics on the device, float32 (3,).
    """

    def __init__(
        self, backbone: nn.Module, feature_size: int, plan: Plan, statistics: ChannelStatistics, device: torch.device
    ) -> None:
        torch.manual_seed(plan.seed)
        freeze(backbone, plan.update)
        moco = MoCo(backbone, feature_size, plan.queue_size, plan.key_momentum, plan.temperature, plan.bn_splits)
        self.moco = moco.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = None if plan.update == "bn-stats" else _sgd(self.moco, plan)
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")
        self.plan = plan
        self.device = device
        self.step = 0
        # Loss, top-1 and spread of the embeddings of each step since the last report.
        self._gathered: list[Tensor] = []
        self.mean = torch.tensor(statistics.mean, device=device)
        self.std = torch.tensor(statistics.std, device=device)

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
            batches.images.report_unreadable(batch.unreadable)
            torch.manual_seed(_step_seed(self.plan.seed, self.step))
            crops = batch.crops.to(self.device, non_blocking=True)
            if self.optimizer is None:
                self._refresh_statistics(crops)
            else:
                output = self.learn(self.views(crops[0]), self.views(crops[1]))
                self._gathered.append(torch.stack((output.loss.detach(), output.top1, embedding_std(output.queries))))
            self.step += 1
            metrics = {}
            if self.step % report_every == 0 or self.step == self.plan.steps:
                metrics = self._summarise()
                now = time.perf_counter()
                metrics["train/images_per_second"] = (self.step - start) * self.plan.batch_size / (now - started_at)
                start, started_at = self.step, now
                self._gathered.clear()
            yield Progress(self.step, metrics)

    def state(self, unreadable: Mapping[int, str]) -> TrainingState:
        """A copy of all that an exact resume needs.

        Args:
            unreadable: images that turned out unreadable, to go with it.
        """
        gathered = torch.stack(self._gathered) if self._gathered else torch.empty(0, 3)
        return take_state(self.step, self.moco, self.optimizer, self.scaler, gathered, unreadable)

    def restore(self, state: TrainingState) -> None:
        """Go on from a training state; raises HptError where it is of another training."""
        gathered = put_state(state, self.moco, self.optimizer, self.scaler)
        self._gathered = list(gathered.to(self.device))
        self.step = state.step

    def learn(self, query_views: Tensor, key_views: Tensor) -> MoCoOutput:
        """One step of MoCo (algorithm 1 of its paper) on two views of the same images.

        Args:
            query_views, key_views: normalised images on the device, float32 (N, 3, size, size).
        """
        optimizer = self.optimizer
        assert optimizer is not None, "nothing learns with update=bn-stats"
        for group in optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(self.step)
        self.moco.update_key_encoder()
        with self._autocast():
            output = self.moco(query_views, key_views)
        optimizer.zero_grad()
        self.scaler.scale(output.loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.moco.enqueue(output.keys)
        return output

    @torch.no_grad()
    def _refresh_statistics(self, crops: Tensor) -> None:
        """A forward pass in training mode, which refreshes BatchNorm's running statistics and nothing else."""
        views = self.views(crops[0])
        with self._autocast():
            self.moco.backbone(views)

    def views(self, crops: Tensor) -> Tensor:
        """Views of crops, uint8 (N, 3, size, size), as the network takes them: float32, normalised."""
        views = finish_views(crops, self.plan.subset, self.plan.strengths, self.mean, self.std)
        return views.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        precision = self.plan.precision
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "float32")

    def _summarise(self) -> dict[str, float]:
        """Means over the steps since the last report, and how many dimensions the keys use."""
        if not self._gathered:
            return {}
        loss, top1, std = torch.stack(self._gathered).mean(dim=0).tolist()
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


def _sgd(moco: MoCo, plan: Plan) -> torch.optim.SGD:
    """SGD with momentum 0.9 (paper, section 4.1) over what may learn."""
    learning = [parameter for parameter in moco.query_encoder.parameters() if parameter.requires_grad]
    return torch.optim.SGD(learning, lr=plan.learning_rate, momentum=0.9, weight_decay=plan.weight_decay)


def _step_seed(seed: int, step: int) -> int:
    """A seed for the random draws of one step, so that they do not depend on the steps before it."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]) >> 1
