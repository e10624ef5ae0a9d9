"""What a stage may change in a backbone, as users write it. Known without torch, for help texts."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpt_mlflow.errors import HptError

# What each kind means, for runs and help texts.
KINDS = {
    "all": "all weights learn (HPT)",
    "norm": "only normalisation layers learn (HPT-BN, where they are BatchNorm)",
    "last": "only the last blocks learn, and what follows them",
    "lora": "only low-rank changes of layers are learned (LoRA)",
    "explora": "the last blocks and all normalisation layers learn, and low-rank changes of the others (ExPLoRA)",
    "bn": "only BatchNorm layers learn (HPT-BN)",
    "bn-stats": "only BatchNorm's running statistics are refreshed (the paper's Base)",
}
FORMS = "all, norm, last:N, lora, explora, explora:N, bn, bn-stats"
LOW_RANK = ("lora", "explora")
DEFAULT_RANK = 4
# The attention of timm's transformers, and of those that keep queries, keys and values apart.
ATTENTION = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj")


class Update(NamedTuple):
    """What may change.

    Attributes:
        kind: one of `KINDS`.
        blocks: how many of the last blocks learn, for `last` and `explora`.
        rank: of low-rank changes.
        targets: ends of the names of the layers that get low-rank changes; empty for the attention of a transformer,
            and for all linear layers and 1 x 1 convolutions of another network.
    """

    kind: str = "all"
    blocks: int = 0
    rank: int = DEFAULT_RANK
    targets: tuple[str, ...] = ()

    @property
    def learns(self) -> bool:
        """Whether anything is learned by gradients."""
        return self.kind != "bn-stats"

    @property
    def words(self) -> str:
        """What it means."""
        more = f" of rank {self.rank}" if self.kind in LOW_RANK else ""
        blocks = f"; last blocks: {self.blocks}" if self.blocks else ""
        return f"{KINDS[self.kind]}{more}{blocks}"


def parse_update(text: str, rank: int | None = None, targets: str | None = None) -> Update:
    """Read `update`, `lora_rank` and `lora_targets`; None for the default.

    Raises:
        HptError: there is no such update, or it has no rank or targets.
    """
    form = re.fullmatch(r"(all|norm|lora|bn|bn-stats)|(last):([1-9]\d*)|(explora)(?::([1-9]\d*))?", text)
    if not form:
        raise HptError(f"{text!r} is unknown", f"use {FORMS}", setting="update")
    kind = form[1] or form[2] or form[4]
    for name, value in (("lora_rank", rank), ("lora_targets", targets)):
        if value is not None and kind not in LOW_RANK:
            raise HptError(f"update={text} has no low-rank changes", "leave it out, or use lora", setting=name)
    blocks = int(form[3] or form[5] or kind == "explora")
    names = tuple(filter(None, (name.strip() for name in (targets or "").split(","))))
    return Update(kind, blocks, rank or DEFAULT_RANK, names)
