"""Choosing precision and torch.compile by a short trial, as their speed depends on both network and processor."""

from __future__ import annotations

import copy
import hashlib
import os
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from hpt_mlflow.data.cache import cache_folder, keep_json, read_json
from hpt_mlflow.errors import HptError
from hpt_mlflow.machine import processor
from hpt_mlflow.models.bfloat16 import has_native_bfloat16
from hpt_mlflow.models.randomness import seeded

# Seconds for all candidates together. The first pass chooses kernels, so one is not enough.
TRIAL_SECONDS = 3.0
FEWEST_TRIALS, MOST_TRIALS = 2, 20
# On a CPU, where a pass of large images takes seconds, and a few of them fill it.
CPU_TRIAL_IMAGES, FEWEST_CPU_IMAGES = 32, 4
CPU_TRIAL_PIXELS = CPU_TRIAL_IMAGES * 64**2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The time that compiling two encoders takes, and the share of a step that it saves (docs/speed.md).
COMPILE_SECONDS = 60.0
COMPILED_SAVES = 0.1
# A step is a forward and backward pass of the queries, as in the trial, and a forward pass of the keys.
STEP_OVER_TRIAL = 4 / 3


@dataclass(frozen=True)
class Arithmetic:
    """How the networks compute.

    Attributes:
        precision: float32, bfloat16 or float16.
        compile: whether to use torch.compile.
        trial: images per second of a forward and backward pass by precision, if there was a trial.
    """

    precision: str
    compile: bool
    trial: Mapping[str, float] = field(default_factory=dict)

    def as_params(self) -> dict[str, str]:
        """The result of the trial, as a parameter of the run."""
        rates = ", ".join(f"{precision} {rate:.0f} images/s" for precision, rate in self.trial.items())
        return {"precision_trial": rates} if rates else {}


def choose_arithmetic(
    precision: str,
    compiled: str,
    backbone: nn.Module,
    image_size: int,
    batch_size: int,
    steps: int,
    device: torch.device,
) -> Arithmetic:
    """The precision, checked against the device, or for `auto` the fastest safe one; and whether to compile.

    The result of a trial is cached for the same network, sizes, processor and version of torch.

    Args:
        precision: auto, float32, bfloat16 or float16.
        compiled: auto, on or off. auto: if the training is long enough to save twice the time that compiling takes.

    Raises:
        HptError: the device does not support it, or there is no compiler.
    """
    if precision == "float16" and device.type != "cuda":
        raise HptError(
            f"float16 needs a GPU, the device is {device}", "use auto, float32 or bfloat16", setting="precision"
        )
    if compiled == "on" and (why_not := _why_not_compile(device)):
        raise HptError(why_not, "use auto or off", setting="compile")
    candidates = ["float32", "bfloat16"] if has_native_bfloat16(device) else ["float32"]
    images = batch_size if device.type == "cuda" else min(batch_size, _cpu_trial_images(image_size))
    trial: dict[str, float] = {}
    if precision == "auto" and len(candidates) > 1:
        trial = _cached_trial(candidates, backbone, image_size, images, device)
        precision = max(trial, key=lambda candidate: trial[candidate])
    elif precision == "auto":
        precision = "float32"
    compiles = compiled == "on"
    if compiled == "auto" and steps * batch_size > _fewest_images(device) and not _why_not_compile(device):
        trial = trial or _cached_trial([precision], backbone, image_size, images, device)
        seconds = steps * batch_size * STEP_OVER_TRIAL / trial[precision]
        compiles = COMPILED_SAVES * seconds > 2 * COMPILE_SECONDS
    return Arithmetic(precision, compiles, trial)


def _cpu_trial_images(image_size: int) -> int:
    return min(CPU_TRIAL_IMAGES, max(FEWEST_CPU_IMAGES, CPU_TRIAL_PIXELS // image_size**2))


def _fewest_images(device: torch.device) -> float:
    """Number of training images below which compiling cannot pay for any network, so that no trial is needed."""
    slowest_rate = 1.0 if device.type == "cpu" else 100.0
    return 2 * COMPILE_SECONDS / COMPILED_SAVES * slowest_rate


@lru_cache
def _why_not_compile(device: torch.device) -> str:
    """Why torch.compile cannot work; empty if it can."""
    if sys.platform == "win32":
        return "torch.compile is not tried on Windows"
    if device.type == "mps":
        return "torch.compile is not tried on mps"
    if sys.platform != "darwin" and not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs Python's headers, and Python.h is missing (install python3-dev)"
    if missing := _missing_compiler(device):
        return f"torch.compile needs {missing}"
    # Last, since it takes a second to import.
    from torch._dynamo.eval_frame import is_dynamo_supported

    python = platform.python_version()
    return "" if is_dynamo_supported() else f"torch {torch.__version__} does not compile on Python {python}"


def _missing_compiler(device: torch.device) -> str:
    """The missing compiler of generated code; empty if there is one."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "the package triton and a GPU that it supports"
        # triton compiles its launchers with any of these.
        language, names = "C", [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    else:
        # torch looks for this one alone.
        language, names = "C++", [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    if not any(map(shutil.which, names)):
        return f"a {language} compiler, and {' or '.join(names) or 'CXX'} is missing"
    return ""


def _cached_trial(
    candidates: list[str], backbone: nn.Module, image_size: int, images: int, device: torch.device
) -> dict[str, float]:
    """Images per second by candidate: from the cache, or from a new trial."""
    file = cache_folder() / "arithmetic" / f"{_key(candidates, backbone, image_size, images, device)}.json"
    cached = read_json(file, lambda rates: {candidate: float(rate) for candidate, rate in rates.items()})
    if cached and list(cached) == candidates and all(rate > 0 for rate in cached.values()):
        return cached
    trial = {
        candidate: _images_per_second(candidate, backbone, image_size, images, device, TRIAL_SECONDS / len(candidates))
        for candidate in candidates
    }
    keep_json(file, trial)
    return trial


def _key(candidates: list[str], backbone: nn.Module, image_size: int, images: int, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    learning = [parameter.requires_grad for parameter in backbone.parameters()]
    facts = (candidates, str(backbone), learning, image_size, images, name, torch.get_num_threads(), torch.__version__)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _images_per_second(
    precision: str, backbone: nn.Module, image_size: int, images: int, device: torch.device, seconds: float
) -> float:
    """The rate of the fastest forward and backward pass within the time given."""
    with seeded(0, device):
        return images / _seconds_of_a_pass(precision, backbone, image_size, images, device, seconds)


def _seconds_of_a_pass(
    precision: str, backbone: nn.Module, image_size: int, images: int, device: torch.device, seconds: float
) -> float:
    end = time.perf_counter() + seconds
    trial = copy.deepcopy(backbone).to(device).to(memory_format=torch.channels_last).train()
    batch = torch.rand(images, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    times: list[float] = []
    while len(times) < FEWEST_TRIALS or (time.perf_counter() < end and len(times) < MOST_TRIALS):
        start = time.perf_counter()
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
            features = trial(batch)
        features.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
