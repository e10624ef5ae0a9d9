"""The training loop: a generator of progress. Its caller logs and keeps what it needs."""

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
from hpt_mlflow.data.batches import Batch, ViewBatches
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.loading import iterate
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.group import ALONE, Group, losses
from hpt_mlflow.methods import load_method
from hpt_mlflow.methods.base import Method, Step, StepResult, Views
from hpt_mlflow.models.backbone import batch_norms, keep_statistics
from hpt_mlflow.models.diagnostics import effective_rank, embedding_std
from hpt_mlflow.models.drop_path import set_drop_path
from hpt_mlflow.models.learning import let_learn
from hpt_mlflow.models.randomness import seeded
from hpt_mlflow.pace import Pace
from hpt_mlflow.training.arithmetic import DTYPES
from hpt_mlflow.training.graph import StepGraph, capture_step
from hpt_mlflow.training.memory import out_of_memory
from hpt_mlflow.training.padding import keep_unseen_weights
from hpt_mlflow.training.plan import Plan
from hpt_mlflow.training.state import TrainingState, put_state, share_state, take_state
from hpt_mlflow.training.views import StepViews


class Progress(NamedTuple):
    """A finished step, counted from 1, and, if a report is due, metrics over the steps since the last one."""

    step: int
    metrics: dict[str, float]


class Trainer:
    """A method, its optimiser and its progress in a stage; the same in every process of a group.

    Attributes:
        method: on the device, in training mode.
        optimizer: None if nothing learns (`update=bn-stats`).
        step: optimiser steps done.
        mean, std: channel statistics on the device, float32 (channels,).
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
        let_learn(backbone, plan.what_learns, plan.seed)
        with seeded(plan.seed):
            method = load_method(plan.method)(backbone, feature_size, plan.options, group)
        method.steps = plan.steps
        if plan.drop_path is not None:
            # Copies in the method that do not learn by gradients leave nothing out, as in DINO's reference code.
            set_drop_path(method.learner, plan.drop_path)
        self.method = method.to(device).to(memory_format=torch.channels_last).train()
        learns = plan.what_learns.learns
        if plan.statistics == "keep":
            for backbone_or_copy in method.backbones:
                keep_statistics(backbone_or_copy)
        self.optimizer = (
            method.make_optimizer(
                plan.learning_rate, plan.weight_decay, plan.optimizer, plan.head_rate, plan.layer_decay
            )
            if learns
            else None
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")
        self.plan = plan
        self.device = device
        self.group = group
        self.step = 0
        # Loss, the method's metrics and spread of the embeddings of each step since the last report.
        self._gathered: list[Tensor] = []
        self._columns = ("loss", *method.metrics, "embedding_std")
        self._embeddings = torch.empty(0)
        self._unreadable: list[tuple[int, str]] = []
        self._keeps_unseen = False
        self._may_capture = plan.graph
        self._pace = Pace(device)
        self._graph: StepGraph | None = None
        self.mean = torch.tensor(statistics.mean, device=device)
        self.std = torch.tensor(statistics.std, device=device)
        if plan.compile:
            _compile(method)
        self._model = _averaging_gradients(method) if group.size > 1 and learns else method

    @property
    def backbone(self) -> nn.Module:
        """The network that is kept."""
        return self.method.backbone

    def train(self, batches: ViewBatches, workers: int, report_every: int) -> Iterator[Progress]:
        """Train from the present step to the last one of the plan.

        Args:
            batches: crops of the images of each step, one for each view of the method.
            workers: processes that decode images.
            report_every: steps between reports; the last step always reports.

        Yields:
            Every step, when it is finished.

        Raises:
            HptError: the loss is no longer a finite number, too many images turned out unreadable, a process that
                decodes them is gone, or the device is out of memory.
        """
        start, started_at = self.step, time.perf_counter()
        for batch in iterate(batches, range(self.step, self.plan.steps), workers, self.device):
            fits = True
            try:
                self._do_step(batch)
            except torch.OutOfMemoryError:
                fits = False
            if not fits:
                # Only here is what the step held free again: the exception kept it.
                raise out_of_memory(self, batch, batches.gpu_images.nbytes if batches.gpu_images else 0)
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
        return take_state(self.step, self.method, self.optimizer, self.scaler, self._rows(), unreadable)

    def agree(self, images: Images) -> None:
        """Average what the next report has gathered so far over the processes, so that one can keep it for all."""
        self._gathered = list(self.group.mean(self._rows()))
        self._report_unreadable(images)

    def restore(self, state: TrainingState | None) -> None:
        """Resume from a training state, which the first process has; raises HptError if it is of another training."""
        if state or self.group.size > 1:
            state = share_state(self.group, state or self.state({}))
            gathered = put_state(state, self.method, self.optimizer, self.scaler)
            self.step, self._gathered = state.step, list(gathered.to(self.device))

    def learn(self, views: Views) -> StepResult:
        """One optimiser step on the views of a batch."""
        if self.plan.precision == "bfloat16" and self.device.type == "cpu" and not self._keeps_unseen:
            sizes = (0, self.method.views) if self.method.local_views else (0,)
            keep_unseen_weights(self.method.learner, *(views[number][:2] for number in sizes))
            self._keeps_unseen = True
        assert self.optimizer is not None, "nothing learns with update=bn-stats"
        for settings, rate in zip(self.optimizer.param_groups, self.rates_at(self.step), strict=True):
            settings["lr"] = rate
        return self.update(views, self.step)

    def rates_at(self, step: int) -> list[float]:
        """The learning rate of each of the optimiser's groups of parameters at a step, counted from 0."""
        rate = self.plan.learning_rate_at(step)
        return [settings["factor"] * rate for settings in self.optimizer.param_groups] if self.optimizer else []

    def update(self, views: Views, step: Step) -> StepResult:
        """As `learn`, by the learning rates that the optimiser has.

        Args:
            step: steps done before.
        """
        optimizer = self.optimizer
        assert optimizer is not None, "nothing learns with update=bn-stats"
        with self.autocast(), losses():
            result: StepResult = self._model(views, step)
        optimizer.zero_grad()
        with losses():
            self.scaler.scale(result.loss).backward()
        if self.plan.clip_gradients is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.method.parameters(), self.plan.clip_gradients)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.method.after_step(step)
        return result

    def row_of(self, result: StepResult) -> Tensor:
        """What a step is reported by, float32 (columns,)."""
        return torch.stack([result.loss.detach(), *result.metrics, embedding_std(result.embeddings)])

    def crops_of(self, batch: Batch) -> list[Tensor]:
        """For each view, the crops of a batch on the device; those of small views last."""
        both = (batch.crops, batch.local_crops)
        # Elsewhere the crops might be gone before they are read.
        ahead = self.device.type == "cuda"
        return [crops for same_size in both for crops in same_size.to(self.device, non_blocking=ahead)]

    def finish(self, crops: Tensor, draws: FinishDraws) -> Tensor:
        """Views of crops, (n, channels, size, size), as the network takes them: float32, normalised."""
        return finish_views(crops, draws, self.plan.strengths, self.mean, self.std)

    def draw_view(self, rng: np.random.Generator) -> FinishDraws:
        """Random numbers for one view of each image of a batch, of all processes together."""
        return draw_finish(rng, self.plan.batch_size, self.plan.subset, self.plan.strengths)

    def _do_step(self, batch: Batch) -> None:
        """Make the views of a batch, and learn from them. The draws of a step do not depend on earlier steps."""
        rng = np.random.default_rng((self.plan.seed, self.step, 1))
        # Layers such as dropout draw in the step.
        with seeded(int(rng.integers(2**62)) + self.group.rank, self.device):
            crops = self.crops_of(batch)
            draws = [self.draw_view(rng) for _ in crops]
            if self._may_capture:
                self._may_capture = False
                self._graph = capture_step(self, crops, draws)
            views = StepViews(crops, draws, rng, self.finish, self.group)
            if self.optimizer is None:
                self._refresh_statistics(views[0])
            elif self._graph is None:
                result = self.learn(views)
                self._embeddings = result.embeddings
                self._gathered.append(self.row_of(result))
            else:
                self._graph.fill(self.step, crops, draws, rng)
                self._graph.replay()
                self._embeddings = self._graph.embeddings
                self._gathered.append(self._graph.row.clone())
        self._pace.end_step()
        self.step += 1

    def _report_unreadable(self, images: Images) -> None:
        """Tell `images` which images any process has found unreadable since the last call."""
        unreadable = [tuple(pair) for part in self.group.collect(self._unreadable) for pair in part]
        self._unreadable.clear()
        images.report_unreadable(unreadable)

    @torch.no_grad()
    def _refresh_statistics(self, views: Tensor) -> None:
        """A forward pass in training mode, which refreshes BatchNorm's running statistics and nothing else."""
        with self.autocast():
            self.backbone(views)
        for layer in batch_norms(self.backbone):
            for running in (layer.running_mean, layer.running_var):
                if running is not None:
                    running.copy_(self.group.mean(running))

    def autocast(self) -> torch.autocast:
        """The arithmetic of the networks."""
        precision = self.plan.precision
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "float32")

    def _rows(self) -> Tensor:
        return torch.stack(self._gathered) if self._gathered else torch.empty(0, len(self._columns), device=self.device)

    def _summarise(self) -> dict[str, float]:
        """Means over the steps since the last report, and the effective rank of the embeddings."""
        if not self._gathered:
            return {}
        # Over the processes first, as `agree` does: a resume in between must not change a bit.
        means = self.group.mean(self._rows()).mean(dim=0).tolist()
        if not math.isfinite(means[0]):
            options = ", ".join(f"{name} {value:g}" for name, value in self.plan.options.items())
            raise HptError(
                f"the loss became {means[0]} between steps {self.step - len(self._gathered) + 1} and {self.step}",
                f"lower learning_rate (now {self.plan.learning_rate}), use precision float32 (now "
                f"{self.plan.precision}), or change the options of {self.plan.method} (now {options})",
            )
        last = self.group.gather(self._embeddings)
        recent = self.method.recent_embeddings(last, self.step * self.plan.batch_size)
        return {
            **{f"train/{name}": mean for name, mean in zip(self._columns, means, strict=True)},
            "train/effective_rank": effective_rank(recent),
            "train/learning_rate": self.plan.learning_rate_at(self.step - 1),
        }


def _compile(method: Method) -> None:
    """Compile the networks with torch.compile, in place, so that names in a state stay. The first step is slow."""
    import torch._dynamo

    # Run what cannot be compiled without compiling it.
    torch._dynamo.config.suppress_errors = True
    for network in method.networks:
        network.compile(dynamic=False)


def _averaging_gradients(method: Method) -> nn.Module:
    """A module whose backward pass averages gradients over all processes."""
    with warnings.catch_warnings(), losses():
        # Newer versions of torch have another name for `broadcast_buffers`.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(method, broadcast_buffers=False, gradient_as_bucket_view=True)
