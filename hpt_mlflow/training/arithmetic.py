"""Precision, torch.compile and CUDA graph of a training, for what the user leaves to `auto`."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import lru_cache

import torch

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.methods import load_method
from hpt_mlflow.models.bfloat16 import has_native_bfloat16
from hpt_mlflow.training.plan import Plan

log = logging.getLogger("hpt_mlflow")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Compiling takes about a minute and saves a tenth of each step (docs/speed.md): too little in a shorter training.
FEWEST_COMPILED_STEPS = {"cpu": 2_500, "cuda": 10_000}


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision, checked against the device; for `auto`, bfloat16 if the hardware has it, otherwise float32.

    Args:
        precision: auto, float32, bfloat16 or float16.

    Raises:
        HptError: the device does not support it.
    """
    if precision == "float16" and device.type != "cuda":
        raise HptError(
            f"float16 needs a GPU, the device is {device}", "use auto, float32 or bfloat16", setting="precision"
        )
    if precision == "bfloat16" and device.type == "cuda" and not has_native_bfloat16(device):
        log.warning(
            "precision: %s computes in bfloat16 by emulation only, up to a hundred times slower; float16 and float32 "
            "are not emulated",
            torch.cuda.get_device_name(device),
        )
    if precision != "auto":
        return precision
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def choose_steps(compiled: str, graph: str, plan: Plan, device: torch.device, processes: int) -> Plan:
    """The plan with `compile` and `graph`; `auto` is a graph where there can be one, as it saves more than compiling.

    Args:
        compiled, graph: auto, on or off.

    Raises:
        HptError: what is on cannot be.
    """
    graphed = choose_graph(graph, replace(plan, compile=compiled == "on"), device, processes)
    compiles = compiled != "auto" or not graphed
    return replace(plan, compile=compiles and choose_compile(compiled, plan.steps, device), graph=graphed)


def choose_compile(compiled: str, steps: int, device: torch.device) -> bool:
    """Whether to use torch.compile; for `auto`, if the training is long enough and torch.compile works here.

    Args:
        compiled: auto, on or off.

    Raises:
        HptError: it is on, and torch.compile does not work here.
    """
    too_short = steps < FEWEST_COMPILED_STEPS.get(device.type, math.inf)
    if compiled == "off" or (compiled == "auto" and too_short):
        return False
    why_not = _why_not_compile(device)
    if why_not and compiled == "on":
        raise HptError(f"torch.compile does not work here ({why_not})", "use auto or off", setting="compile")
    return not why_not


def choose_graph(graph: str, plan: Plan, device: torch.device, processes: int) -> bool:
    """Whether a step is a CUDA graph; for `auto`, if nothing speaks against it. Where nothing learns there is no step.

    Args:
        graph: auto, on or off.

    Raises:
        HptError: it is on, and a step cannot be captured.
    """
    if graph == "off" or not plan.what_learns.learns:
        return False
    against = {
        f"the device is {device}": device.type != "cuda",
        f"{processes} processes train together": processes > 1,
        f"steps of {plan.method} differ from each other": not load_method(plan.method).capturable,
        "float16 looks at the gradients of each step": plan.precision == "float16",
        "networks are compiled (compile=on)": plan.compile,
    }
    why_not = next((reason for reason, holds in against.items() if holds), "")
    if graph == "on" and why_not:
        problem = f"a CUDA graph cannot hold the steps of this training, as {why_not}"
        raise HptError(problem, "change that, or use auto or off", setting="cuda_graph")
    return not why_not


@lru_cache
def _why_not_compile(device: torch.device) -> str:
    """The error when a small function is compiled, such as for a missing C++ compiler; empty if that works."""
    # Takes seconds to import.
    import torch._dynamo

    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            torch.compile(lambda numbers: 2 * numbers + 1)(torch.ones(8, device=device))
    # Compilers raise all kinds of errors.
    except Exception as error:
        return one_line(error)
    return ""
