"""How much the embeddings of a model that stands alone differ from the package's, on real images.

python benchmarks/standalone_parity.py clipart grocery --root DATA
"""

from __future__ import annotations

import time

import click
import numpy as np
import onnxruntime

from hpt_mlflow.data.decode import LONGEST_STRIP, decode
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.machine import processor
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.onnx_graph import Geometry, served_graph
from hpt_mlflow.serving import EmbeddingModel
from hpt_mlflow.stages.training.start import find_weights, start_from_weights

# Larger ones show nothing more.
LARGEST_SIDE = 1024


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--root", help="Folder that DATA starts from.")
@click.option("--weights", default="efficientnet-lite0", show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--images", default=10_000, show_default=True)
def main(data: tuple[str, ...], root: str | None, weights: str, image_size: int, images: int) -> None:
    """Print the largest difference, the time that the graph took to write, and images per second of both."""
    found = find_weights(weights, None, image_size, small_stem=False)
    start = start_from_weights(found)
    card = BackboneCard(found.architecture, start.feature_size, found.mean, found.std, found.chain)
    package = EmbeddingModel(start.backbone, card)
    began = time.perf_counter()
    graph = served_graph(start.backbone.cpu(), card, Geometry(package.smallest_side, image_size, LONGEST_STRIP))
    written = time.perf_counter() - began
    alone = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    seconds, count, difference, largest = np.zeros(2), 0, 0.0, 0.0
    for name in data:
        dataset = open_dataset(name, root)
        indices = range(min(len(dataset), images - count))
        for index in indices:
            image = decode(dataset.pictures[index], LARGEST_SIDE)
            times = [time.perf_counter()]
            theirs = package.predict(image[None])
            times.append(time.perf_counter())
            (ours,) = alone.run(None, {"images": image[None]})
            seconds += np.diff([*times, time.perf_counter()])
            difference, largest = max(difference, float(abs(ours - theirs).max())), max(largest, float(theirs.max()))
            count += 1
    print(f"{count:,} images, {weights} at {image_size} pixels, on {processor()}")
    print(f"largest difference {difference:.6f} of embeddings up to {largest:.2f}; graph written in {written:.1f} s")
    print(f"images per second, one by one: package {count / seconds[0]:.0f}, alone {count / seconds[1]:.0f}")


if __name__ == "__main__":
    main()
