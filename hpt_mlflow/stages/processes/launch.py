"""One stage in several processes of this machine: started by torchrun's agent, which ends or restarts them together."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
from torch.distributed import is_torchelastic_launched
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hpt_mlflow.errors import HptError
from hpt_mlflow.group import LostProcessError, joins_others
from hpt_mlflow.settings import TrainingSettings
from hpt_mlflow.signals import INTERRUPTED, end_with_parent, handlers_kept, warnings_passed_on
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.result import StageResult, read_result
from hpt_mlflow.subprocesses import cannot_start, import_variables
from hpt_mlflow.tracking.runs.nesting import current_run_id, nested_environment

SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"
PID_FILE = "first.pid"
# Seconds between two looks at the processes.
MONITOR_SECONDS = 0.2


def is_launched_here(settings: TrainingSettings) -> bool:
    """Whether a stage is to start its processes itself, and is not one of them.

    Raises:
        HptError: it is one of several that are started otherwise, and is to start more.
    """
    if not joins_others():
        return settings.nproc > 1
    if settings.nproc > 1 and not is_torchelastic_launched():
        raise HptError(
            f"nproc: {settings.nproc} processes cannot be started by one of several (RANK and WORLD_SIZE are set); "
            "leave nproc out, or start torchrun instead"
        )
    return False


def launch(stage: str, settings: TrainingSettings) -> StageResult:
    """Run a stage in `settings.nproc` processes, and wait for it.

    Raises:
        HptError: there are not so many GPUs; or what one of the processes has to say.
        KeyboardInterrupt: a signal asked to stop; the processes have kept the training state.
    """
    check_devices(settings)
    for noisy in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="hpt-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
        stack.enter_context(_environment(_variables(settings)))
        stack.enter_context(warnings_passed_on(folder / PID_FILE))
        # torchrun's agent leaves its own behind.
        stack.enter_context(handlers_kept())
        if os.environ.get("MLFLOW_RUN_ID") and not os.environ.get("HPT_DETACHED"):
            stack.enter_context(end_with_parent())
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=settings.nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=settings.restarts,
            monitor_interval=MONITOR_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", __name__, stage, name)
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            raise _what_happened(error, folder) from None
        except OSError as error:
            raise HptError(cannot_start(error)) from error
        return read_result(json.loads((folder / RESULT_FILE).read_text()))


def check_devices(settings: TrainingSettings) -> None:
    """Check that each process of a training can have a device.

    Raises:
        HptError: it cannot.
    """
    device = resolve_device(settings.device)
    if device.type == "mps" or device.index is not None:
        raise HptError(f"nproc: {settings.nproc} processes cannot share {device}; use device cuda or cpu, or nproc 1")
    if device.type == "cuda" and settings.nproc > torch.cuda.device_count():
        raise HptError(
            f"nproc: {settings.nproc} processes need as many GPUs, but torch sees {torch.cuda.device_count()}; lower it"
        )


def child_variables(parent_run_id: str, processes: int) -> dict[str, str]:
    """What processes of ours find in their environment: the same server, the same experiment, a share of the cores.

    Args:
        parent_run_id: the run that theirs are nested in, or nothing.
        processes: how many share the cores.
    """
    # torchrun's own choice is one thread per process, whatever the machine has.
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))}
    return import_variables() | nested_environment(parent_run_id) | threads


def _variables(settings: TrainingSettings) -> dict[str, str]:
    """What the processes of a training find in their environment."""
    return child_variables(current_run_id() or "", settings.nproc) | {
        # A store that outlives a restart holds the addresses of processes that are gone, and some would be called up.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _what_happened(error: ChildFailedError, folder: Path) -> BaseException:
    """The reason of the process that had one: the others only say that it is gone."""
    said = [file.read_text() for file in sorted(folder.glob("error-*"))]
    if said:
        return HptError(said[0])
    failures = sorted(error.failures.items(), key=lambda entry: entry[1].timestamp)
    for rank, failure in failures:
        if failure.exitcode < 0:
            return HptError(
                f"process {rank} of the training was ended by {failure.signal_name()}; the same command goes on from "
                "the newest training state, and --restarts N does so by itself"
            )
    if all(failure.exitcode == INTERRUPTED for _, failure in failures):
        return KeyboardInterrupt()
    # A connection may break though both its ends are alive.
    lost = [file.read_text() for file in sorted(folder.glob("lost-*"))]
    if lost:
        return HptError(f"{lost[0]}; the same command goes on from the newest training state")
    rank, failure = failures[0]
    return HptError(f"process {rank} of the training ended with exit code {failure.exitcode}; see its messages above")


def _take_part(stage: str, folder: Path) -> int:
    """Be one of the processes; gives the exit code."""
    rank = int(os.environ["RANK"])
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING if rank == 0 else logging.ERROR)
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    # What it said before all were started again.
    for left in folder.glob(f"*-{rank}"):
        left.unlink()
    if rank == 0:
        (folder / PID_FILE).write_text(str(os.getpid()))
    try:
        with end_with_parent():
            result = getattr(import_module(f"hpt_mlflow.stages.{stage}"), stage)(**settings)
    except KeyboardInterrupt:
        return INTERRUPTED
    except LostProcessError as error:
        (folder / f"lost-{rank}").write_text(str(error))
        return 1
    except HptError as error:
        (folder / f"error-{rank}").write_text(str(error))
        return 1
    if rank == 0:
        (folder / RESULT_FILE).write_text(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(_take_part(sys.argv[1], Path(sys.argv[2])))
