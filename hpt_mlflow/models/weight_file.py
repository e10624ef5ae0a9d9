"""Reading the tensors of a file from another program, without executing anything in it."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hpt_mlflow.errors import HptError, one_line, printable

# Where training programs store the state of their network, if the file has other entries.
CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "network")
# Prefixes that wrappers add to every name.
WRAPPERS = ("module.", "_orig_mod.")
# Where published weights are, by a part of their name. Those of DINOv3 are given only to whom has accepted its licence.
PUBLISHED = {
    "dinov3": "accept its licence at https://ai.meta.com/resources/models-and-libraries/dinov3-downloads or at "
    "https://huggingface.co/facebook, download the .pth file or model.safetensors there, and give its path",
    "dinov2": "download it from https://github.com/facebookresearch/dinov2#pretrained-models or "
    "https://huggingface.co/facebook, and give its path",
    "mae": "download it from https://github.com/facebookresearch/mae, and give its path",
}
# How a web page or a pointer of Git LFS begins, which a download leaves that is not permitted, or not complete.
NO_WEIGHTS = (b"<", b'{"error', b"version https://git-lfs")
# Bytes read at a time.
CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file.

    Attributes:
        tensors: by name, on the CPU, without the prefixes of wrappers.
        beside: other entries of the file, such as the optimiser's state and the epoch.
        author: the program that wrote the file, if it says so; otherwise empty.
        sha256: checksum of the file, in hexadecimal.
    """

    tensors: dict[str, Tensor]
    beside: tuple[str, ...]
    author: str
    sha256: str


def read_weight_file(file: Path, name: str) -> WeightFile:
    """Read a file of safetensors, or of torch with `weights_only`.

    Args:
        name: of the file, in errors.

    Raises:
        HptError: it cannot be read, holds something that would be executed, or holds no network.
    """
    _refuse_missing(file, name)
    try:
        checksum = sha256(file)
        content: Any = safetensors.torch.load_file(file) if file.suffix == ".safetensors" else _load(file, name)
    except OSError as error:
        raise HptError(f"{name} cannot be read ({error.strerror or one_line(error)})", setting="weights") from error
    except safetensors.SafetensorError as error:
        raise HptError(
            f"{name} is not a safetensors file, or is damaged ({one_line(error)})", setting="weights"
        ) from error
    if not isinstance(content, dict):
        problem = f"{name} holds a {type(content).__name__}, not the state of a network"
        raise HptError(problem, "save its state_dict()", setting="weights")
    container, state = _find_state(content, name)
    beside = tuple(str(key) for key in content if key != container) if container else ()
    tensors = {str(key): value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    odd = tuple(str(key) for key, value in state.items() if not isinstance(value, Tensor))
    return WeightFile(_unwrap(tensors), beside + odd, str(content.get("author", "")) if container else "", checksum)


def _refuse_missing(file: Path, name: str) -> None:
    """Raise HptError for the name of published weights, and for what a refused download leaves."""
    where = next((text for part, text in PUBLISHED.items() if part in file.name.lower()), "")
    if where and not file.exists():
        raise HptError(f"{name} is not a file here, and nothing is downloaded", where, setting="weights")
    if file.is_file():
        with open(file, "rb") as stream:
            begin = stream.read(64).lstrip().lower()
        if begin.startswith(NO_WEIGHTS):
            problem = f"{name} is a text, as a download leaves that was refused or is not complete"
            raise HptError(problem, where or "download the file of weights itself", setting="weights")


def sha256(file: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _load(file: Path, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error))
        if not code:
            problem = f"{name} is damaged, or not a torch file that can be read without running code"
            raise HptError(problem, setting="weights") from error
        raise HptError(
            f"{name} holds more than tensors ({code[1]}), and reading it could run code",
            "if you trust it and have the code that made it, save only its tensors: "
            "net = torch.load(FILE, weights_only=False); torch.save(net.state_dict(), NEW_FILE), or net['state_dict'] "
            "if net is a dict",
            setting="weights",
        ) from error
    except OSError:
        raise
    # Damaged files raise all kinds of errors.
    except Exception as error:
        raise HptError(f"{name} is not a torch file, or is damaged ({one_line(error)})", setting="weights") from error


def _find_state(content: dict[Any, Any], name: str) -> tuple[str, dict[Any, Any]]:
    """The key of the network's state in the content of a file, empty for the content itself, and that state."""
    for key in CONTAINERS:
        if isinstance(content.get(key), dict) and _has_tensors(content[key]):
            return key, content[key]
    if _has_tensors(content):
        return "", content
    inside = [key for key, value in content.items() if isinstance(value, dict) and _has_tensors(value)]
    if len(inside) == 1:
        return inside[0], content[inside[0]]
    keys = ", ".join(printable(str(key)) for key in list(content)[:5])
    raise HptError(
        f"{name} holds no state of a network under {' or '.join(CONTAINERS)}, but {keys or 'nothing'}",
        setting="weights",
    )


def _has_tensors(state: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in state.values())


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, in any order and number."""
    while prefix := next(_common_wrappers(tensors), ""):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _common_wrappers(tensors: dict[str, Tensor]) -> Iterator[str]:
    return (prefix for prefix in WRAPPERS if tensors and all(key.startswith(prefix) for key in tensors))
