"""Resizing and cropping as ONNX functions, equal to `augment.crop.centre_crop` after `data.decode.decode` of an array.

ONNX's own `Resize` differs from Pillow by a step in some pixels, and so features by more than rounding. So this is
Pillow's arithmetic (Resample.c): filter coefficients in fixed point, whole numbers after either pass, the width first.
Numbers are float64, in which all of it is exact. Pixels of 16 bits,
which Pillow resizes as floats, may differ by a step of 65,535. To import it takes onnxscript.
"""

# mypy: ignore-errors
# The functions are read by onnxscript, not run by Python: `+` and `[...]` are operators of ONNX.

from __future__ import annotations

from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Opset

DOMAIN = "hpt_mlflow"
OPSET = op.version
_local = Opset(DOMAIN, 1)


@script(_local, default_opset=op)
def resample(pixels, first, last, scale, low, high, white):
    """Pillow's bilinear filter along the last axis.

    Args:
        pixels: (N, C, A, B), of which the inputs are low to high of the last axis.
        first, last: the first output and the one after the last.
        scale: inputs per output.

    Returns:
        (N, C, A, last - first), whole numbers from 0 to white.
    """
    zero = low - low
    one = op.Exp(zero)
    length = op.Cast(op.Squeeze(op.Shape(pixels, start=3, end=4)), to=11)
    inputs = op.Range(zero, length, one) - low
    centres = op.Unsqueeze((op.Range(first, last, one) + 0.5) * scale, [1])
    triangle = op.Relu(1.0 - op.Abs(inputs - centres + 0.5) * (1.0 / op.Max(scale, one)))
    weights = triangle * op.Cast(op.And(inputs >= zero, inputs < high - low), to=11)
    weights = weights / op.ReduceSum(weights, [1], keepdims=1)
    # 22 bits behind the point: PRECISION_BITS.
    fixed = op.Floor(weights * 4194304.0 + 0.5)
    sums = op.MatMul(pixels, op.Transpose(fixed, perm=[1, 0])) + 2097152.0
    return op.Clip(op.Floor(sums / 4194304.0), zero, white)


@script(_local, default_opset=op)
def resize(pixels, first, last, scale, low, high, white):
    """`resample` along both axes, the width first; the arguments are pairs, (height, width)."""
    first_y, first_x = op.Split(first, num_outputs=2)
    last_y, last_x = op.Split(last, num_outputs=2)
    scale_y, scale_x = op.Split(scale, num_outputs=2)
    low_y, low_x = op.Split(low, num_outputs=2)
    high_y, high_x = op.Split(high, num_outputs=2)
    narrow = resample(
        pixels,
        op.Squeeze(first_x),
        op.Squeeze(last_x),
        op.Squeeze(scale_x),
        op.Squeeze(low_x),
        op.Squeeze(high_x),
        white,
    )
    turned = resample(
        op.Transpose(narrow, perm=[0, 1, 3, 2]),
        op.Squeeze(first_y),
        op.Squeeze(last_y),
        op.Squeeze(scale_y),
        op.Squeeze(low_y),
        op.Squeeze(high_y),
        white,
    )
    return op.Transpose(turned, perm=[0, 1, 3, 2])


@script(_local, default_opset=op)
def planes(images):
    """From (N, height, width, bands) to float64 (N, bands, height, width)."""
    return op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=11)


@script(_local, default_opset=op)
def scaled(numbers, low, factor, white):
    """Numbers as pixels, see `data.numbers.to_pixels`.

    Args:
        numbers: (N, C, height, width), or of one band, which becomes all channels.
        low, factor: (C, 1, 1).

    Returns:
        (N, C, height, width), whole numbers from 0 to white.
    """
    zero = white - white
    measured = op.Where(op.Or(op.IsNaN(numbers), op.IsInf(numbers)), low, numbers)
    return op.Floor(op.Clip((measured - low) * factor, zero, white) + 0.5)


@script(_local, default_opset=op)
def centre_crops(pixels, side, shorter, first, last, strip, white):
    """Reduce images, resize the central square of each, and cut out its middle.

    Args:
        pixels: float64 (N, C, height, width), whole numbers from 0 to white.
        side: reduce so that the shorter side has at most this many pixels.
        shorter: resize the square to this many pixels.
        first, last: what is cut out of them.
        strip: squares of the smallest side that are kept of a strip.

    Returns:
        float32 (N, C, last - first, last - first), from 0 to white.
    """
    whole = op.Cast(op.Shape(pixels, start=2, end=4), to=11)
    short = op.ReduceMin(whole, keepdims=0)
    kept = op.Min(short, side)
    longest = op.Floor(strip * side * side * short / (kept * kept))
    low = op.Floor(op.Max(whole - longest, short - short) / 2.0)
    cut = whole - low - low
    reduced = op.Where(short > side, op.Max(op.Round(cut * (side / short)), side), cut)
    zeros = cut - cut
    small = resize(pixels, zeros, reduced, cut / reduced, low, low + cut, white)
    edge = op.ReduceMin(reduced, keepdims=0)
    corner = op.Floor((reduced - edge) / 2.0)
    square = resize(small, zeros + first, zeros + last, zeros + edge / shorter, corner, corner + edge, white)
    return op.Cast(square, to=1)


FUNCTIONS = (resample, resize, planes, scaled, centre_crops)
