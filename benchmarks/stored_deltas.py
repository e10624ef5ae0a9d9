"""How large what `store=delta` keeps is, as a share of the whole model: of networks with random weights, per update.

python benchmarks/stored_deltas.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch

from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import WEIGHTS_FILE, BackboneCard, copy_to_cpu, save_backbone
from hpt_mlflow.models.delta import DELTA_CARD_FILE, DELTA_FILE, DeltaParent
from hpt_mlflow.models.learning import learning_share, let_learn
from hpt_mlflow.models.update import parse_update

NETWORKS = {"ViT-S/16": ("timm:vit_small_patch16_224", 224), "EfficientNet-Lite0": ("timm:tf_efficientnet_lite0", 64)}
UPDATES = ("lora", "lora, rank 8", "norm", "explora", "last:1")


@click.command()
def main() -> None:
    """Print a table in Markdown."""
    print("| `update` | " + " | ".join(f"{name}: learns | keeps" for name in NETWORKS) + " |")
    print("|---" * (1 + 2 * len(NETWORKS)) + "|")
    for update in UPDATES:
        cells = [
            f"{learns:.2%} | {kept / 2**20:.2f} MiB, {kept / whole:.1%}"
            for learns, kept, whole in (measured(*network, update) for network in NETWORKS.values())
        ]
        print(f"| {update} | {' | '.join(cells)} |")


def measured(arch: str, image_size: int, update: str) -> tuple[float, int, int]:
    """The share of the parameters that learn, and the bytes of the files of a delta and of the whole.

    Everything that learns changes, as a step of training would change it; running statistics stay the parent's, as in
    the preset gentle.
    """
    architecture = Architecture(arch, image_size)
    backbone, feature_size = build_backbone(architecture)
    card = BackboneCard(architecture, feature_size, (0.5,) * 3, (0.5,) * 3)
    parent = DeltaParent("models:/hpt/1", copy_to_cpu(backbone.state_dict()))
    kind, _, rank = update.partition(", rank ")
    let_learn(backbone, parse_update(kind, int(rank) if rank else None))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    state = copy_to_cpu(backbone.state_dict())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_backbone(folder, state, card)
        save_backbone(folder, state, card, parent)
        kept = sum((folder / name).stat().st_size for name in (DELTA_FILE, DELTA_CARD_FILE))
        return learning_share(backbone), kept, (folder / WEIGHTS_FILE).stat().st_size


if __name__ == "__main__":
    main()
