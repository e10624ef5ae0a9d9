"""The whole step of a training as one CUDA graph: small networks otherwise wait for the calls that start their work."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment.draws import FinishDraws, blur_radius
from hpt_mlflow.augment.in_batches import Applied, send, table_of
from hpt_mlflow.augment.on_gpu import finish_by_table
from hpt_mlflow.errors import one_line
from hpt_mlflow.models.randomness import seeded
from hpt_mlflow.training.views import pick

if TYPE_CHECKING:
    from hpt_mlflow.training.loop import Trainer

# Does some work, and returns what does the same operations on the same memory again.
Capture = Callable[[Callable[[], None]], Callable[[], None]]
# Times that a step is done before it is captured: it has then allocated what it keeps, and chosen its algorithms.
WARM_UP = 3
# Steps that are done with the graph and without, and how far apart their results may be, over what a step changes. A
# GPU adds in whatever order it likes.
TRIED_STEPS, LARGEST_ERROR, TINY = 2, 0.2, 1e-6
LOSS = "loss"

log = logging.getLogger("hpt_mlflow")


class StaticViews:
    """`methods.base.Views` that are made from the same memory in each step, by one process."""

    def __init__(self, trainer: Trainer, crops: Sequence[Tensor], draws: Sequence[FinishDraws]) -> None:
        """Take memory for crops and draws of these shapes."""
        plan = trainer.plan
        self._finish = partial(
            finish_by_table,
            applied=Applied.of_subset(plan.subset),
            radius=blur_radius(plan.strengths),
            mean=trainer.mean,
            std=trainer.std,
        )
        self._crops = [torch.empty_like(part) for part in crops]
        tables = [table_of(drawn, crops[0].shape[1]) for drawn in draws]
        self._tables = [torch.empty(table.shape, device=trainer.device) for table in tables]
        # For each call of `shuffled` in a step.
        self._orders: list[Tensor] = []
        self._shuffled = 0
        self._made: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """One view of each image, float32 (n, channels, size, size)."""
        if number not in self._made:
            self._made[number] = self._view(self._crops[number], self._tables[number])
        return self._made[number]

    def shuffled(self, number: int) -> tuple[Tensor, Tensor]:
        """One view of all images, in an order drawn anew, and that order."""
        crops = self._crops[number]
        if self._shuffled == len(self._orders):
            self._orders.append(torch.arange(len(crops), device=crops.device))
        order = self._orders[self._shuffled]
        self._shuffled += 1
        return self._view(pick(crops, order), self._tables[number][:, order]), order

    def begin(self) -> None:
        """Forget the views of the last step."""
        self._made.clear()
        self._shuffled = 0

    def fill(self, crops: Sequence[Tensor], draws: Sequence[FinishDraws], rng: np.random.Generator) -> None:
        """Put the crops and the draws of a step in place, and draw its orders."""
        for place, values in zip(self._crops, crops, strict=True):
            place.copy_(values, non_blocking=True)
        for place, drawn in zip(self._tables, draws, strict=True):
            place.copy_(send(table_of(drawn, crops[0].shape[1]), place.device), non_blocking=True)
        for place in self._orders:
            place.copy_(send(rng.permutation(len(place)), place.device), non_blocking=True)

    @torch.no_grad()
    def _view(self, crops: Tensor, table: Tensor) -> Tensor:
        with torch.autocast(crops.device.type, enabled=False):
            return self._finish(crops, table)


class StepGraph:
    """A step whose every number is in the same memory each time.

    Attributes:
        row: what the last step is reported by, float32 (figures,).
        embeddings: of the last step, float32 (n, d).
        replay: does the step that was captured.
    """

    replay: Callable[[], None]

    def __init__(self, trainer: Trainer, crops: Sequence[Tensor], draws: Sequence[FinishDraws]) -> None:
        # The trainer has this graph: in a cycle, both would keep the GPU's memory until Python collects cycles.
        self._trainer: Trainer = weakref.proxy(trainer)
        self._views = StaticViews(trainer, crops, draws)
        self._step = torch.zeros((), dtype=torch.int64, device=trainer.device)
        self._rates = torch.zeros(len(trainer.rates_at(0)), device=trainer.device)
        self.row = self.embeddings = torch.empty(0)

    def fill(self, step: int, crops: Sequence[Tensor], draws: Sequence[FinishDraws], rng: np.random.Generator) -> None:
        """Put the numbers of a step in place; `replay` then does it."""
        self._views.fill(crops, draws, rng)
        self._step.fill_(step)
        rates = np.array(self._trainer.rates_at(step), np.float32)
        self._rates.copy_(send(rates, self._rates.device), non_blocking=True)

    def run(self) -> None:
        """Do the step, one operation after the other."""
        self._views.begin()
        result = self._trainer.update(self._views, self._step)
        row = self._trainer.row_of(result)
        if not len(self.row):
            self.row, self.embeddings = torch.empty_like(row), torch.empty_like(result.embeddings)
        self.row.copy_(row)
        self.embeddings.copy_(result.embeddings)

    def keep_rates(self, in_memory: bool) -> None:
        """Let the optimiser read its learning rates from memory, or take numbers of Python again."""
        optimizer = self._trainer.optimizer
        assert optimizer is not None, "nothing learns with update=bn-stats"
        rates = self._rates if in_memory else self._trainer.rates_at(0)
        for settings, rate in zip(optimizer.param_groups, rates, strict=True):
            settings["lr"] = rate
            if "capturable" in settings:
                settings["capturable"] = in_memory and self._rates.is_cuda


def capture_on_gpu(run: Callable[[], None]) -> Callable[[], None]:
    """Capture some work on the current GPU as a CUDA graph."""
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # What cannot be captured leaves the stream of its attempt behind. Other threads go on pinning memory. Without a
    # stream, torch would take one of the GPU of the first graph of this process.
    with torch.cuda.stream(current), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    return graph.replay


def capture_step(
    trainer: Trainer, crops: Sequence[Tensor], draws: Sequence[FinishDraws], capture: Capture = capture_on_gpu
) -> StepGraph | None:
    """A step as a graph, after a trial of some steps; None, with a warning, if the graph does something else.

    Args:
        crops, draws: of any step, for its views.
    """
    # Free the memory of earlier trainings that reference cycles still hold.
    gc.collect()
    graph: StepGraph | None = None
    before: dict[str, Tensor] = {}
    on_gpu = torch.cuda.device(trainer.device) if trainer.device.type == "cuda" else nullcontext()
    # What is drawn here does not count.
    with on_gpu, seeded(trainer.step, trainer.device):
        try:
            graph = StepGraph(trainer, crops, draws)
            before = _copies(trainer)
            graph.keep_rates(in_memory=True)
            graph.run()
            expected = _tried(graph, graph.run, trainer, crops, draws, before)
            graph.replay = capture(graph.run)
            got = _tried(graph, graph.replay, trainer, crops, draws, before)
            learns = {name for name, _ in trainer.method.named_parameters()}
            why_not = "" if _is_near(got, expected, before, learns) else "its steps are not those without it"
        except RuntimeError as error:
            why_not = one_line(error)
    if before:
        _restore(trainer, before)
    if why_not:
        remedy = "cuda_graph=off does not try it, and compile=on compiles the networks instead"
        log.warning("this training runs without a CUDA graph (%s); %s", why_not, remedy)
        if graph:
            graph.keep_rates(in_memory=False)
        return None
    return graph


def _tried(
    graph: StepGraph,
    do_step: Callable[[], None],
    trainer: Trainer,
    crops: Sequence[Tensor],
    draws: Sequence[FinishDraws],
    before: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The state after some steps from the state before, and their last loss."""
    _restore(trainer, before)
    for step in range(trainer.step, trainer.step + TRIED_STEPS):
        torch.manual_seed(step)
        graph.fill(step, crops, draws, np.random.default_rng(step))
        do_step()
    return _copies(trainer) | {LOSS: graph.row[0].clone()}


def _state(trainer: Trainer) -> dict[str, Tensor]:
    """All that a step changes, by name."""
    tensors = dict(trainer.method.state_dict())
    kept = trainer.optimizer.state.values() if trainer.optimizer else ()
    for parameter, values in enumerate(kept):
        tensors |= {f"optimizer/{parameter}/{name}": value for name, value in values.items() if torch.is_tensor(value)}
    return tensors


def _copies(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in _state(trainer).items()}


@torch.no_grad()
def _restore(trainer: Trainer, before: dict[str, Tensor]) -> None:
    """Put copies back in place; what the optimiser has made since begins at 0."""
    for name, tensor in _state(trainer).items():
        if name in before:
            tensor.copy_(before[name])
        else:
            tensor.zero_()


def _is_near(got: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor], learns: set[str]) -> bool:
    """Whether the loss is the same, and weights, all together, and each buffer have moved alike.

    Some weights move by rounding alone, as those before a normalisation do: one by one they need not agree.

    Args:
        learns: names of weights.
    """
    names = [name for name in before if before[name].is_floating_point() and not name.startswith("optimizer/")]
    difference, change = (
        {name: float((one[name] - other[name]).double().norm()) for name in names}
        for one, other in ((got, expected), (expected, before))
    )
    far, moved = (math.hypot(*(by_name[name] for name in names if name in learns)) for by_name in (difference, change))
    buffers = [difference[name] <= LARGEST_ERROR * change[name] + TINY for name in names if name not in learns]
    near = torch.allclose(got[LOSS], expected[LOSS], rtol=LARGEST_ERROR)
    return near and far <= LARGEST_ERROR * moved + TINY and all(buffers)
