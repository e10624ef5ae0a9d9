"""Networks as ONNX graphs: a backbone alone, or all that is served, from pixels to embeddings or labels."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.pixels import PixelFormat

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
IMAGES, CROPS, EMBEDDING, PROBABILITIES = "images", "crops", "embedding", "probabilities"
NUMBERS, PIXELS, WHITE = "numbers", "pixels", "white"
LABEL, PROBABILITY = "label", "probability"
OPSET = 18


@dataclass(frozen=True)
class Head:
    """A linear classifier as it is stored.

    Attributes:
        tensors: see `models.classifier.save_classifier`.
        classes: names, in the order of its outputs.
        multilabel: whether an image may have several labels.
    """

    tensors: Mapping[str, Tensor]
    classes: Sequence[str]
    multilabel: bool


@dataclass(frozen=True)
class Geometry:
    """How images become squares: what `data.decode.decode` and `augment.crop.centre_crop` take.

    Attributes:
        smallest_side: images are reduced first so that their shorter side has at most this many pixels.
        resize_to: pixels of the shorter side from which the crop is cut.
        longest_strip: squares of the smallest side that are kept of a strip.
    """

    smallest_side: int
    resize_to: int
    longest_strip: int


def require_onnx(setting: str) -> None:
    """Raise HptError if a package that writes ONNX is missing."""
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise HptError(
                f"ONNX needs the package {package} ({one_line(error)})",
                'install it with: pip install "hpt_mlflow[onnx]"',
                setting=setting,
            ) from error


def network_graph(network: nn.Module, card: BackboneCard, inputs: str, output: str) -> ModelProto:
    """A network from float32 (N, channels, size, size) as ONNX, in evaluation mode; left as it was.

    Raises:
        HptError: it has an operator that ONNX does not know; says which.
    """
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()
    # Two images, as the exporter treats a batch size of 1 as a constant.
    side = card.architecture.image_size
    images = torch.zeros(2, card.architecture.channels, side, side)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (images,),
                input_names=[inputs],
                output_names=[output],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    # The exporter raises all kinds of errors for layers that ONNX does not know.
    except Exception as error:
        raise HptError(
            f"{card.architecture.name} cannot be written as ONNX ({one_line(_first_cause(error))})",
            "this package serves and evaluates it as it is",
        ) from error
    finally:
        for layer, training in modes.items():
            layer.training = training
    assert program is not None, "the exporter of torch 2.6 and later returns a program"
    model: ModelProto = program.model_proto
    return model


def _first_cause(error: BaseException) -> BaseException:
    """The innermost error, which names the operator."""
    while error.__cause__:
        error = error.__cause__
    return error


class _Served(nn.Module):
    """From squares of pixels, float32 (N, channels, size, size), to an embedding or to probabilities."""

    def __init__(self, backbone: nn.Module, card: BackboneCard, head: Head | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))
        self.white = float(np.iinfo(card.pixels.dtype).max)
        self.head = head

    def forward(self, crops: Tensor) -> Tensor:
        features: Tensor = self.backbone((crops / self.white - self.mean) / self.std).flatten(1)
        if self.head is None:
            return features
        of = self.head.tensors
        # In float64, see `evaluation.head.LinearHead`.
        logits = (((features - of["mean"]) / of["std"]) @ of["weight"] + of["bias"]).double()
        return logits.sigmoid() if self.head.multilabel else logits.softmax(dim=1)


def served_graph(backbone: nn.Module, card: BackboneCard, geometry: Geometry, head: Head | None = None) -> ModelProto:
    """All that is served as one graph.

    Its input is `images`, uint8 (N, height, width, 3) of any N, height and width; of a model of deep images or bands,
    the numbers of their files in all bands, float32 (N, height, width, bands). Without a head its output is
    `embedding`, float32 (N, feature size). With one it is `probabilities`, float64 (N, C); where an image has one
    class, also `label`, text (N,), and its `probability`, float64 (N,).

    Args:
        backbone: on the CPU; left as it was.

    Raises:
        HptError: the backbone has an operator that ONNX does not know; says which.
    """
    onnx, resizing = importlib.import_module("onnx"), importlib.import_module("hpt_mlflow.models.resize_graph")
    inliner = importlib.import_module("onnx.inliner")
    make, kind = onnx.helper, onnx.TensorProto
    result = PROBABILITIES if head else EMBEDDING
    network = network_graph(_Served(backbone, card, head), card, CROPS, result)
    size, outputs = card.architecture.image_size, len(head.classes) if head else card.feature_size
    first = (geometry.resize_to - size) // 2
    numbers = {
        "side": geometry.smallest_side,
        "shorter": geometry.resize_to,
        "first": first,
        "last": first + size,
        "strip": geometry.longest_strip,
        WHITE: np.iinfo(card.pixels.dtype).max,
    }
    to_pixels, arrays = _to_pixels(card.pixels, resizing.DOMAIN)
    crop = make.make_node("centre_crops", [PIXELS, *numbers], [CROPS], domain=resizing.DOMAIN)
    nodes = [*to_pixels, crop, *network.graph.node]
    constants = [make.make_tensor(name, kind.DOUBLE, [], [float(number)]) for name, number in numbers.items()]
    constants += [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    answers = [make.make_tensor_value_info(result, kind.DOUBLE if head else kind.FLOAT, ["N", outputs])]
    if head and not head.multilabel:
        nodes += [
            make.make_node("ArgMax", [PROBABILITIES], ["best"], axis=1, keepdims=0),
            make.make_node("Gather", ["classes", "best"], [LABEL]),
            make.make_node("ReduceMax", [PROBABILITIES, "axes"], [PROBABILITY], keepdims=0),
        ]
        constants += [
            make.make_tensor("classes", kind.STRING, [outputs], [name.encode() for name in head.classes]),
            make.make_tensor("axes", kind.INT64, [1], [1]),
        ]
        answers = [
            make.make_tensor_value_info(LABEL, kind.STRING, ["N"]),
            make.make_tensor_value_info(PROBABILITY, kind.DOUBLE, ["N"]),
            *answers,
        ]
    is_8_bit = card.pixels.dtype == np.uint8
    input_type, bands = (kind.UINT8 if is_8_bit else kind.FLOAT), (3 if card.pixels.is_rgb else "bands")
    graph = make.make_graph(
        nodes,
        "classifier" if head else "backbone",
        [make.make_tensor_value_info(IMAGES, input_type, ["N", "height", "width", bands])],
        answers,
        [*constants, *network.graph.initializer],
    )
    model = make.make_model(
        graph,
        opset_imports=[*network.opset_import, make.make_opsetid(resizing.DOMAIN, 1)],
        functions=[*(function.to_function_proto() for function in resizing.FUNCTIONS), *network.functions],
        ir_version=network.ir_version,
    )
    whole: Any = inliner.inline_local_functions(model)
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _to_pixels(pixels: PixelFormat, domain: str) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Nodes from `IMAGES` to `PIXELS`, as `data.numbers.to_pixels` does it, and their constants by name."""
    make = importlib.import_module("onnx").helper
    names = [NUMBERS, *(["chosen"] if pixels.bands else []), *([PIXELS] if pixels.low else [])]
    names[-1] = PIXELS
    nodes, constants = [make.make_node("planes", [IMAGES], [names[0]], domain=domain)], {}
    if pixels.bands:
        constants["band_indices"] = np.array(pixels.bands) - 1
        nodes.append(make.make_node("Gather", [names[0], "band_indices"], [names[1]], axis=1))
    if pixels.low:
        low, high = (np.array(values, np.float64).reshape(-1, 1, 1) for values in (pixels.low, pixels.high))
        constants |= {"low": low, "factor": np.iinfo(pixels.dtype).max / (high - low)}
        nodes.append(make.make_node("scaled", [names[-2], "low", "factor", WHITE], [PIXELS], domain=domain))
    return nodes, constants


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages for its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
