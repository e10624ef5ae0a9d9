"""Views on a GPU: crops, and what `in_batches` does in a hundred operations, in five Triton kernels.

Each program makes `PIXELS` pixels of one image. Planes are float32 (N, 3, side, side) in [0, 1] and contiguous; `table`
is that of `in_batches.table_of`, float32 (17, N). `in_batches.finish_plainly` says in torch what they compute.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hpt_mlflow.augment.color import GRAY_WEIGHTS

PIXELS = tl.constexpr(1024)
# Partial sums of an image that are added up at once.
MOST_PARTS = tl.constexpr(1024)
RED, GREEN, BLUE = (tl.constexpr(weight) for weight in GRAY_WEIGHTS)
# Rows of the table.
FIRST, SECOND, GRAYNESS, MEAN_GRAYNESS = (tl.constexpr(3 * row) for row in range(4))
TURNED, HUE, GRAY, SIGMA, FLIP = (tl.constexpr(12 + row) for row in range(5))


@triton.jit
def cut(pixels, boxes, crops, side, channels):
    """Resize boxes of images into crops, as `crop_kernels.resize_box` does: bilinear, antialiased where it shrinks.

    Args:
        pixels: of all images, uint8 or uint16, one image (height, width, channels) after another.
        boxes: of each crop, where its image begins in `pixels`, the image's width, and left, top, width and height of
            the box; int64 (M, 6).
        crops: what is made, as `pixels`, (M, channels, side, side).
    """
    crop, channel = tl.program_id(0).to(tl.int64), tl.program_id(2)
    place = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    box = boxes + 6 * crop
    begin, image_width = tl.load(box), tl.load(box + 1)
    left, top = tl.load(box + 2).to(tl.int32), tl.load(box + 3).to(tl.int32)
    width, height = tl.load(box + 4).to(tl.int32), tl.load(box + 5).to(tl.int32)
    x, y = place % side, place // side
    first_x, first_y = _first(x, width, side), _first(y, height, side)
    total, weights = tl.zeros([PIXELS], tl.float32), tl.zeros([PIXELS], tl.float32)
    inside = place < side * side
    for j in range(_most(height, side)):
        line = pixels + begin + (top + first_y + j) * image_width * channels
        weight_y = _weight(first_y + j, y, height, side)
        for i in range(_most(width, side)):
            weight = weight_y * _weight(first_x + i, x, width, side)
            pixel = tl.load(line + (left + first_x + i) * channels + channel, mask=inside & (weight > 0), other=0)
            total += weight * pixel.to(tl.float32)
            weights += weight
    made = total / tl.where(inside, weights, 1.0) + 0.5
    tl.store(crops + (crop * channels + channel) * side * side + place, made.to(crops.dtype.element_ty), mask=inside)


@triton.jit
def _first(place, old, new):
    """The first of `old` pixels in a line that the pixel at a place among `new` takes part of."""
    # A pixel j has a weight where |(2j + 1) new - (2i + 1) old| < 2 max(old, new); all are whole numbers.
    before = (2 * place + 1) * old - 2 * tl.maximum(old, new) - new
    return tl.where(before < 0, 0, tl.maximum(before, 0) // (2 * new) + 1)


@triton.jit
def _most(old, new):
    """How many pixels a new one takes at most."""
    return (2 * tl.maximum(old, new) + new - 1) // new


@triton.jit
def _weight(pixel, place, old, new):
    """How much of a pixel a new one takes, not normalised."""
    distance = tl.abs((2 * pixel + 1) * new - (2 * place + 1) * old).to(tl.float32)
    return tl.where(pixel < old, tl.maximum(1 - distance / (2 * tl.maximum(old, new)).to(tl.float32), 0), 0)


@triton.jit
def add_gray(crops, table, sums, count, side, stride_n, stride_c, stride_y, stride_x, white):
    """The sum of the grey that contrast takes the mean of, for each program: float32 (N, programs)."""
    n, part = tl.program_id(0), tl.program_id(1)
    place = part * PIXELS + tl.arange(0, PIXELS)
    inside = place < side * side
    red, green, blue = _read(crops, n, place, inside, side, stride_n, stride_c, stride_y, stride_x, white)
    red, green, blue, gray = _jitter(red, green, blue, table + n, count, 0.0)
    tl.store(sums + n * tl.num_programs(1) + part, tl.sum(tl.where(inside, gray, 0.0), axis=0))


@triton.jit
def color(
    crops, table, sums, planes, count, side, stride_n, stride_c, stride_y, stride_x, white, parts, jitters: tl.constexpr
):
    """Jitter colours and turn to grey, into planes."""
    n = tl.program_id(0)
    place = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = place < side * side
    red, green, blue = _read(crops, n, place, inside, side, stride_n, stride_c, stride_y, stride_x, white)
    if jitters:
        mean = 0.0
        for start in range(0, parts, MOST_PARTS):
            part = start + tl.arange(0, MOST_PARTS)
            mean += tl.sum(tl.load(sums + n * parts + part, mask=part < parts, other=0), axis=0)
        red, green, blue, gray = _jitter(red, green, blue, table + n, count, mean / (side * side))
    if tl.load(table + n + GRAY * count) != 0:
        gray = _gray(red, green, blue)
        red, green, blue = gray, gray, gray
    plane = planes + n.to(tl.int64) * 3 * side * side + place
    tl.store(plane, red, mask=inside)
    tl.store(plane + side * side, green, mask=inside)
    tl.store(plane + 2 * side * side, blue, mask=inside)


@triton.jit
def blur_rows(planes, table, rows, count, side, radius):
    """Blur along x, of the images that are blurred."""
    n, channel = tl.program_id(0), tl.program_id(2)
    sigma = tl.load(table + n + SIGMA * count)
    if sigma > 0:
        place = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
        inside = place < side * side
        start = (n.to(tl.int64) * 3 + channel) * side * side
        x, last = place % side, side - 1
        line = planes + start + place - x
        total, weights = tl.load(line + x, mask=inside, other=0), 1.0
        for k in range(1, tl.minimum(radius, last) + 1):
            weight = _bell(k, sigma)
            before, after = tl.abs(x - k), last - tl.abs(last - x - k)
            total += weight * (
                tl.load(line + before, mask=inside, other=0) + tl.load(line + after, mask=inside, other=0)
            )
            weights += 2 * weight
        tl.store(rows + start + place, total / weights, mask=inside)


@triton.jit
def finish(planes, rows, table, mean, std, views, count, side, radius, blurs: tl.constexpr):
    """Blur along y, flip and normalise, into views, float32 (N, side, side, 3)."""
    n, channel = tl.program_id(0), tl.program_id(2)
    place = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = place < side * side
    start = (n.to(tl.int64) * 3 + channel) * side * side
    x, y, last = place % side, place // side, side - 1
    if blurs:
        sigma = tl.load(table + n + SIGMA * count)
        if sigma > 0:
            column = rows + start + x
            total, weights = tl.load(column + y * side, mask=inside, other=0), 1.0
            for k in range(1, tl.minimum(radius, last) + 1):
                weight = _bell(k, sigma)
                before, after = tl.abs(y - k), last - tl.abs(last - y - k)
                total += weight * (
                    tl.load(column + before * side, mask=inside, other=0)
                    + tl.load(column + after * side, mask=inside, other=0)
                )
                weights += 2 * weight
            value = total / weights
        else:
            value = tl.load(planes + start + place, mask=inside, other=0)
    else:
        value = tl.load(planes + start + place, mask=inside, other=0)
    to = tl.where(tl.load(table + n + FLIP * count) != 0, last - x, x)
    value = (value - tl.load(mean + channel)) / tl.load(std + channel)
    tl.store(views + ((n.to(tl.int64) * side + y) * side + to) * 3 + channel, value, mask=inside)


@triton.jit
def _bell(k, sigma):
    """A Gaussian at k pixels from its middle, where it is 1."""
    return tl.exp(-(k * k) / (2 * sigma * sigma))


@triton.jit
def _read(crops, n, place, inside, side, stride_n, stride_c, stride_y, stride_x, white):
    """Red, green and blue of some pixels, where white is 1."""
    pixel = crops + n.to(tl.int64) * stride_n + (place // side) * stride_y + (place % side) * stride_x
    red = tl.load(pixel, mask=inside, other=0).to(tl.float32)
    green = tl.load(pixel + stride_c, mask=inside, other=0).to(tl.float32)
    blue = tl.load(pixel + 2 * stride_c, mask=inside, other=0).to(tl.float32)
    return red / white, green / white, blue / white


@triton.jit
def _jitter(red, green, blue, column, count, mean):
    """Two rounds of three blends, with a turn of the hue between them.

    Returns:
        Red, green and blue, and the grey before contrast.
    """
    kept = _gray(red, green, blue)
    for turn in tl.static_range(3):
        gray = _gray(red, green, blue)
        kept = tl.where(tl.load(column + (MEAN_GRAYNESS + turn) * count) != 0, gray, kept)
        red, green, blue = _blend(red, green, blue, gray, column + turn * count, FIRST, count, mean)
    hue_red, hue_green, hue_blue = _turn_hue(red, green, blue, tl.load(column + HUE * count))
    turned = tl.load(column + TURNED * count) != 0
    red, green, blue = (
        tl.where(turned, hue_red, red),
        tl.where(turned, hue_green, green),
        tl.where(turned, hue_blue, blue),
    )
    for turn in tl.static_range(3):
        gray = _gray(red, green, blue)
        # Contrast belongs to one of the two rounds; in the other its factor is 1.
        second = tl.load(column + (SECOND + turn) * count) != 1
        kept = tl.where((tl.load(column + (MEAN_GRAYNESS + turn) * count) != 0) & second, gray, kept)
        red, green, blue = _blend(red, green, blue, gray, column + turn * count, SECOND, count, mean)
    return red, green, blue, kept


@triton.jit
def _gray(red, green, blue):
    return RED * red + GREEN * green + BLUE * blue


@triton.jit
def _blend(red, green, blue, gray, column, row, count, mean):
    """`color.blend` by a column of the table."""
    factor = tl.load(column + row * count)
    base = mean * tl.load(column + MEAN_GRAYNESS * count) + gray * tl.load(column + GRAYNESS * count)
    rest = (1 - factor) * base
    return _clamp(rest + factor * red), _clamp(rest + factor * green), _clamp(rest + factor * blue)


@triton.jit
def _clamp(values):
    return tl.minimum(tl.maximum(values, 0.0), 1.0)


@triton.jit
def _turn_hue(red, green, blue, factor):
    """`color.adjust_hue`."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    from_blue = tl.where(value == green, blue - red, red - green)
    difference = tl.where(value == red, green - blue, from_blue)
    third = tl.where(value == red, 0.0, tl.where(value == green, 2.0, 4.0))
    hue = difference / tl.maximum(chroma, 1e-12) + third + 6 * factor
    return (value - chroma * _share(hue + 5), value - chroma * _share(hue + 3), value - chroma * _share(hue + 1))


@triton.jit
def _share(position):
    """The share of the chroma that a channel lacks at a position on the circle, in sixths."""
    place = position - 6 * tl.floor(position / 6)
    return _clamp(2 - tl.abs(place - 2))
