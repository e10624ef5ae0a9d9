"""A backbone kept as its difference from its parent: what to keep, and how to put the whole together to the bit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.cards import check_types, read_card, write_card
from hpt_mlflow.models.lora import factors_of, merged

DELTA_FILE = "delta.safetensors"
DELTA_CARD_FILE = "delta.json"
FORMAT = "hpt_mlflow.delta/1"
VERSION = re.compile(r"models:/[^/:']+/\d+")
SHA256 = re.compile(r"[0-9a-f]{64}")


class DeltaParent(NamedTuple):
    """The registered version, `models:/NAME/VERSION`, that a difference refers to, and its weights, on the CPU."""

    address: str
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class DeltaCard:
    """What a difference belongs to.

    Attributes:
        parent: address of the registered version that it changes: `models:/NAME/VERSION`.
        parent_sha256, sha256: `digest_of` the weights of the parent, and of the whole.
    """

    parent: str
    parent_sha256: str
    sha256: str

    def of(self, model: str) -> str:
        """What a model is, for errors."""
        name, _, version = self.parent.removeprefix("models:/").rpartition("/")
        return f"{model} is a delta of {name} version {version}"


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bits of weights on the CPU, however they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def difference(parent: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state that differ from the parent's in any bit; the factors of low-rank changes unmerged.

    A tensor is kept whole if its change comes on top of others, or if its factors are larger than it.

    Args:
        state: of the same network, on the CPU, with low-rank changes that are not merged.
    """
    changes: dict[str, Tensor] = {}
    for name, tensor in merged(state).items():
        if _are_same(parent.get(name), tensor):
            continue
        factors = factors_of(state, name)
        smaller = sum(factor.numel() for factor in factors.values()) < tensor.numel()
        alone = factors and _are_same(parent.get(name), state[name])
        changes |= factors if alone and smaller else {name: tensor}
    return changes


def put_together(parent: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole weights from those of the parent and a `difference` from them."""
    return merged({**parent, **changes})


def save_delta(folder: Path, state: Mapping[str, Tensor], parent: DeltaParent) -> None:
    """Write the difference of a state from its parent into a folder, which exists.

    Args:
        state: see `difference`.

    Raises:
        HptError: the whole could not be put together from what would be written.
    """
    changes, digest = difference(parent.weights, state), digest_of(merged(state))
    if digest_of(put_together(parent.weights, changes)) != digest:
        problem = f"the backbone cannot be put together from {parent.address} and its difference"
        raise HptError(problem, "use whole", setting="store")
    safetensors.torch.save_file(changes, folder / DELTA_FILE)
    card = DeltaCard(parent.address, digest_of(parent.weights), digest)
    write_card(folder / DELTA_CARD_FILE, FORMAT, asdict(card))


def read_delta_card(folder: Path, name: str) -> DeltaCard | None:
    """The card of the difference in a folder; None if it holds whole weights.

    Raises:
        HptError: it is damaged, or of another version of this package.
    """
    file = folder / DELTA_CARD_FILE
    return read_card(file, FORMAT, name, _make_card) if file.is_file() else None


def _make_card(values: dict[str, Any]) -> DeltaCard:
    check_types(values, dict.fromkeys(values, str))
    card = DeltaCard(**values)
    if not VERSION.fullmatch(card.parent):
        raise ValueError(f"the parent {card.parent!r} is not a registered version")
    if not (SHA256.fullmatch(card.parent_sha256) and SHA256.fullmatch(card.sha256)):
        raise ValueError("a checksum is not a SHA-256")
    return card


def _are_same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits; 0 and -0 differ, and a NaN is the same as itself."""
    if one is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
