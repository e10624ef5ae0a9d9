"""Tensors under the names of another library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

Rules = Sequence[tuple[str, str]]


class Recognised(NamedTuple):
    """Weights of a known kind of network.

    Attributes:
        format: their kind and their layout.
        arch: the network that they look like; None if no known one has its sizes.
        tensors: by the names of that network.
        left_out: tensors that it does not have, with what each of them is.
    """

    format: str
    arch: str | None
    tensors: dict[str, Tensor]
    left_out: dict[str, str]


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Tensors by new names: each rule, a regular expression and its replacement, is applied in turn.

    A name that two tensors would get stays with the first; the other keeps its own.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[name if new in renamed else new] = tensor
    return renamed


def take_out(tensors: dict[str, Tensor], kinds: Mapping[str, str]) -> dict[str, str]:
    """Remove the tensors whose name matches a pattern.

    Args:
        tensors: changed in place.
        kinds: what a tensor is, by the pattern of its name.

    Returns:
        What each removed tensor is.
    """
    found = {name: kind for name in tensors for pattern, kind in kinds.items() if re.match(pattern, name)}
    for name in found:
        del tensors[name]
    return found
