"""Networks made faster for inference: BatchNorm becomes part of the convolution before it."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hpt_mlflow.models.backbone import batch_norms

# Exactly these: a subclass may do something else with its weight, as timm's StdConv2d does.
CONVOLUTIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
# timm's Conv2d that pads by the size of its input.
PADDED_CONVOLUTION = ("timm.layers.conv2d_same", "Conv2dSame")
# timm's BatchNorm2d with dropout and activation behind it.
NORM_AND_ACTIVATION = ("timm.layers.norm_act", "BatchNormAct2d")
# Norm of what folding may change of features, over their own norm. Convolutions on a GPU round to TF32 by default: that
# makes 0.004 of it with a resnet50; float32 makes a thousandth of that.
MOST_CHANGE = 1e-2


class _Tracer(fx.Tracer):
    """Takes a convolution or a BatchNorm as one layer, whichever library it is from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (_ConvNd, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(backbone: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy in evaluation mode in which each BatchNorm that directly follows a convolution is folded into it.

    In evaluation mode, BatchNorm multiplies and shifts each channel by constants, which the weights and the bias of the
    convolution before it can take over (Jacob et al., CVPR 2018, section 3.2). What cannot be folded so stays as it is:
    a BatchNorm without running statistics, one before a convolution, a convolution that something else looks at, and
    layers that are used more than once.

    Args:
        backbone: float32 (N, 3, H, W) to (N, ...); left exactly as it is.
        example: a few images, on the backbone's device, of which the folded network must give the same features. A
            network may take another way while it is traced, and nobody notices.

    Returns:
        A network with the same features up to rounding; a plain copy in evaluation mode where torch.fx cannot follow
        what the network does, or the example shows that it did not.
    """
    copied = copy.deepcopy(backbone).eval()
    if not batch_norms(copied):
        return copied
    try:
        # A trace leaves marks in what it went through, where a network keeps something for the next time.
        traced = copy.deepcopy(copied)
        folded = _folded(fx.GraphModule(traced, _Tracer().trace(traced)))
        return folded if example is None or _same(copied, folded, example) else copied
    # A network may do anything while it is traced, and raise anything; then it is used as it is.
    except Exception:
        return copied


@torch.no_grad()
def _same(network: nn.Module, folded: nn.Module, example: Tensor) -> bool:
    features, found = network(example), folded(example)
    return bool(features.shape == found.shape and (found - features).norm() <= MOST_CHANGE * features.norm())


def _folded(network: fx.GraphModule) -> nn.Module:
    layers = dict(network.named_modules(remove_duplicate=False))
    called = [node for node in network.graph.nodes if node.op == "call_module"]
    calls = Counter(id(layers[node.target]) for node in called)
    # Where a network reads a layer's weights by itself, they must stay what they are.
    read = {node.target.rpartition(".")[0] for node in network.graph.nodes if node.op == "get_attr"}
    for node in called:
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = layers[before.target], layers[node.target]
        once = calls[id(convolution)] == calls[id(norm)] == 1
        if not once or {before.target, node.target} & read or not _fits(convolution, norm):
            continue
        network.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
        network.set_submodule(str(node.target), _behind(norm).eval())
    # Of the containers that torch.fx makes; a layer that its author keeps in training mode stays so.
    for layer in network.modules():
        layer.training = layer.training and type(layer) is not nn.Module
    return network


def _fits(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether both are what they seem: plain layers with running statistics, and no hooks that change what they do."""
    expected = nn.BatchNorm2d if _is(convolution, PADDED_CONVOLUTION) else CONVOLUTIONS.get(type(convolution))
    plain = type(norm) is expected or (expected is nn.BatchNorm2d and _is(norm, NORM_AND_ACTIVATION))
    if not plain or norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    return not any(layer._forward_hooks or layer._forward_pre_hooks for layer in (convolution, norm))


def _is(layer: nn.Module, name: tuple[str, str]) -> bool:
    """Whether a layer is exactly of a class of a package that may not be installed."""
    return (type(layer).__module__, type(layer).__name__) == name


def _behind(norm: nn.Module) -> nn.Module:
    """What is left of a folded BatchNorm: its activation, where it has one."""
    if _is(norm, NORM_AND_ACTIVATION):
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return nn.Identity()
