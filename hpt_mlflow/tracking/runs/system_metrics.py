"""MLflow's system metrics (processor, memory, disk, network, GPU) of a run, delivered like all its metrics.

The switch is MLflow's own: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, or `mlflow.enable_system_metrics_logging()`. MLflow's
thread would end with the first request that fails, and hold up the end of a run whose server is gone. So only its
monitors are used; the samples go through the run's spool.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mlflow.entities import RunInfo
from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
)

from hpt_mlflow.errors import HptError

PREFIX = "system/"
INTERVAL_SECONDS = 10.0
Log = Callable[[Mapping[str, float], int], None]


def check_system_metrics() -> None:
    """Raise HptError if system metrics are wanted, but psutil is missing."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return
    try:
        importlib.import_module("psutil")
    except ImportError as error:
        raise HptError(
            "system metrics need the package psutil",
            'pip install "hpt_mlflow[system]", or turn them off',
            setting=MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.name,
        ) from error


@contextmanager
def system_metrics(run: RunInfo, log: Log) -> Iterator[None]:
    """Log system metrics while the block runs, if they are wanted.

    Args:
        log: takes metrics and their step, the seconds since the run was started, so that a resumed run goes on.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(run, log, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(run: RunInfo, log: Log, ended: threading.Event) -> None:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id)
    interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL_SECONDS
    samples = MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or 1
    while True:
        for _ in range(samples):
            monitor.collect_metrics()
            ended.wait(interval)
        values = {f"{PREFIX}{name}": value for name, value in monitor.aggregate_metrics().items()}
        log(values, round(time.time() - run.start_time / 1000))
        for each in monitor.monitors:
            each.clear_metrics()
        if ended.is_set():
            return
