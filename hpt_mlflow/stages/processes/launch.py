"""One training in several processes of this machine, which end, or are started again, together.

The processes find the variables that torchrun would set, and meet at a store that this process serves on a free port.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

import torch
from torch.distributed import TCPStore, is_torchelastic_launched

from hpt_mlflow.errors import HptError
from hpt_mlflow.group import LostProcessError, joins_others
from hpt_mlflow.settings import TrainingSettings
from hpt_mlflow.signals import end_with_parent, termination_as_interrupt, warnings_passed_to
from hpt_mlflow.stages.objects import refuse_objects
from hpt_mlflow.stages.processes.children import STAGE_PROCESS, Children, Ended, children
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.result import StageResult, read_result

HOST = "127.0.0.1"
POLL_SECONDS = 0.2
# How long the others may take to notice that one is gone, and to say why they end.
LAST_WORDS_SECONDS = 5.0
RESUME = "run the same command again to resume from the newest training state"

log = logging.getLogger("hpt_mlflow")


def is_launched_here(settings: TrainingSettings) -> bool:
    """Whether a stage is to start its processes itself, and is not one of them.

    Raises:
        HptError: it is one of several that were started otherwise, and is to start more.
    """
    if not joins_others():
        return settings.nproc > 1
    if settings.nproc > 1 and not is_torchelastic_launched():
        raise HptError(
            f"{settings.nproc} processes cannot be started by one of several (RANK and WORLD_SIZE are set)",
            "leave nproc out, or start torchrun instead",
            setting="nproc",
        )
    return False


def launch(stage: str, settings: TrainingSettings) -> StageResult:
    """Run a stage in `settings.nproc` processes, and wait for it.

    Raises:
        HptError: there are not enough GPUs; or the error of one of the processes.
        KeyboardInterrupt: a signal asked to stop; the processes have kept the training state.
    """
    check_devices(settings)
    refuse_objects(settings)
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        if os.environ.get("MLFLOW_RUN_ID") and not os.environ.get("HPT_DETACHED"):
            stack.enter_context(end_with_parent())
        processes = stack.enter_context(children(STAGE_PROCESS, settings.nproc, one_training=True))
        stack.enter_context(warnings_passed_to(lambda number: processes.send_signal(0, number)))
        for restart in range(settings.restarts + 1):
            ended = _run_together(processes, stage, settings, restart)
            if not any(process.code for process in ended):
                return read_result(next(process.result for process in ended if process.place == 0))
            error = _reason(ended)
            if restart < settings.restarts:
                log.warning("%s; starting all again (%d of %d)", error.problem, restart + 1, settings.restarts)
        raise error


def check_devices(settings: TrainingSettings) -> None:
    """Check that each process of a training can have a device.

    Raises:
        HptError: it cannot.
    """
    device, nproc = resolve_device(settings.device), settings.nproc
    if device.type == "mps" or device.index is not None:
        raise HptError(
            f"{nproc} processes cannot share {device}", "use device cuda or cpu, or nproc 1", setting="nproc"
        )
    if device.type == "cuda" and nproc > (count := torch.cuda.device_count()):
        raise HptError(f"{nproc} processes need as many GPUs, but torch sees {count}", "lower it", setting="nproc")


def _run_together(processes: Children, stage: str, settings: TrainingSettings, restart: int) -> list[Ended]:
    """Start all processes, and wait until they have ended; when one has failed, end the others."""
    # A store that outlived a restart would hold the addresses of processes that are gone.
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(settings.nproc),
        "LOCAL_WORLD_SIZE": str(settings.nproc),
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
        "TORCHELASTIC_RESTART_COUNT": str(restart),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for rank in range(settings.nproc):
        job = {"stage": stage, "settings": asdict(settings)}
        processes.start(rank, job, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    ended: list[Ended] = []
    deadline = float("inf")
    while processes and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        ended += processes.ended()
        if any(process.code for process in ended):
            deadline = min(deadline, time.monotonic() + LAST_WORDS_SECONDS)
    processes.end()
    return ended


def _reason(ended: Sequence[Ended]) -> HptError:
    """Why a training has failed: the error of the process that had one; the others only say that it is gone."""
    failed = [process for process in ended if process.code]
    for process in failed:
        if process.error and not isinstance(process.error, LostProcessError):
            return process.error
    process = next((process for process in failed if not process.error), failed[0])
    if process.error:
        # A connection may break though both its ends are alive.
        return HptError(process.error.problem, RESUME)
    remedy = f"{RESUME}, or use --restarts N" if process.code < 0 else ""
    return HptError(f"process {process.place} of the training {process.how}", remedy)
