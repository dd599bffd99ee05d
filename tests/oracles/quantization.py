"""Slow textbook versions of the quantization maths: scalar loops, written from the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np


def scale_and_zero_point(minimum, maximum, lowest, highest, middle, symmetric):
    """One range, in Python floats."""
    minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
    if minimum == maximum == 0.0:
        return np.float32(1.0), (middle if symmetric else lowest)
    if symmetric:
        return normal(max(maximum / (highest - middle), minimum / (lowest - middle))), middle
    scale = normal((maximum - minimum) / (highest - lowest))
    return scale, round(lowest - minimum / (maximum - minimum) * (highest - lowest))


def normal(scale):
    """The scale as float32, the smallest normal one at least."""
    return np.float32(max(scale, 2.0**-126))


def code(value, scale, zero_point, lowest, highest):
    """QuantizeLinear of one value. Python's round is half to even."""
    with np.errstate(over="ignore"):
        quotient = np.float32(value) / np.float32(scale)
    if math.isinf(quotient):
        return highest if quotient > 0 else lowest
    return min(max(round(float(quotient)) + int(zero_point), lowest), highest)


def parameter_index(index, axis, block):
    """Where the scale of the element at this index stands."""
    if axis is None:
        return ()
    if block is None:
        return (index[axis],)
    moved = list(index)
    moved[axis] //= block
    return tuple(moved)


def quantize(array, grid, axis, block):
    """Codes, scales and zero points of an array, element by element; dictionaries by index."""
    members = {}
    for index in np.ndindex(array.shape):
        members.setdefault(parameter_index(index, axis, block), []).append(float(array[index]))
    parameters = {
        key: scale_and_zero_point(min(v), max(v), grid.lowest, grid.highest, grid.middle, grid.symmetric)
        for key, v in members.items()
    }
    codes = {}
    for index in np.ndindex(array.shape):
        scale, zero_point = parameters[parameter_index(index, axis, block)]
        codes[index] = code(array[index], scale, zero_point, grid.lowest, grid.highest)
    return codes, parameters


def squared_error(values, counts, minimum, maximum, grid):
    """sum of c (x - Q(x))^2, in float64."""
    scale, zero_point = scale_and_zero_point(minimum, maximum, grid.lowest, grid.highest, grid.middle, grid.symmetric)
    total = 0.0
    for value, count in zip(values, counts, strict=True):
        rendered = (code(value, scale, zero_point, grid.lowest, grid.highest) - zero_point) * float(scale)
        total += float(count) * (float(value) - rendered) ** 2
    return total


def least_squared_error(values, counts, grid, steps):
    """The least squared error over every pair of ends on a lattice of steps x steps."""
    lows = [min(values[0], 0.0) * k / steps for k in range(1, steps + 1)] if values[0] < 0 else [0.0]
    highs = [max(values[-1], 0.0) * k / steps for k in range(1, steps + 1)] if values[-1] > 0 else [0.0]
    return min(squared_error(values, counts, low, high, grid) for low, high in itertools.product(lows, highs))


def percentile(values, counts, percent, symmetric):
    """Quantiles of the sample written out in full: the smallest seen value that enough lie at or below."""
    full = [float(v) for v, c in zip(values, counts, strict=True) for _ in range(int(c))]
    if symmetric:
        magnitudes = sorted(abs(v) for v in full)
        limit = magnitudes[max(math.ceil(len(full) * percent / 100 - 1e-9), 1) - 1]
        return max(min(full), -limit), min(max(full), limit)
    place = max(math.ceil(len(full) * (100 + percent) / 200 - 1e-9), 1) - 1
    return sorted(full, reverse=True)[place], sorted(full)[place]


def divergence(histogram, below, above, start, stop, levels, floor=1e-10):
    """KL divergence of one window (Migacz 2017), bin by bin."""
    width = stop - start
    reference = [float(histogram[start + i]) for i in range(width)]
    reference[0] += below + sum(histogram[:start])
    reference[-1] += above + sum(histogram[stop:])
    parts = {}
    for i in range(width):
        parts.setdefault(i * levels // width, []).append(i)
    rendered = [0.0] * width
    for bins in parts.values():
        occupied = [i for i in bins if histogram[start + i] > 0]
        for i in occupied:
            rendered[i] = sum(histogram[start + j] for j in bins) / len(occupied)
    if sum(rendered) == 0:
        return math.inf
    total = 0.0
    for p, r in zip(reference, rendered, strict=True):
        share = p / sum(reference)
        if share > 0:
            total += share * math.log(share / max(r / sum(rendered), floor))
    return total


def float_bins(values):
    """Counts by the upper 16 bits, one value at a time."""
    counts = {}
    for value in values:
        upper = int.from_bytes(np.array(value, "<f4").tobytes(), "little") >> 16
        counts[upper] = counts.get(upper, 0) + 1
    return counts


def convolution(inputs, weight, bias=None, groups=1):
    """1-d convolution without padding in float64: inputs [N, I, T], weight [O, I / groups, K]; [N, O, T - K + 1]."""
    batch, _, length = inputs.shape
    outputs, per_group, kernel = weight.shape
    result = np.zeros((batch, outputs, length - kernel + 1))
    for n, o, t, i, k in itertools.product(*map(range, (*result.shape, per_group, kernel))):
        source = o // (outputs // groups) * per_group + i
        result[n, o, t] += float(weight[o, i, k]) * float(inputs[n, source, t + k])
    return result if bias is None else result + np.asarray(bias, np.float64)[:, None]


def transposed_convolution(inputs, weight, groups=1):
    """1-d transposed convolution in float64: inputs [N, I, T], weight [I, O / groups, K]; [N, O, T + K - 1]."""
    batch, channels, length = inputs.shape
    _, per_group, kernel = weight.shape
    result = np.zeros((batch, per_group * groups, length + kernel - 1))
    for n, i, t, o, k in itertools.product(*map(range, (batch, channels, length, per_group, kernel))):
        target = i // (channels // groups) * per_group + o
        result[n, target, t + k] += float(weight[i, o, k]) * float(inputs[n, i, t])
    return result


def batch_norm(inputs, scale, offset, mean, variance, epsilon):
    """Batch normalisation with running moments in float64: inputs [N, C, T]."""
    result = np.zeros(inputs.shape)
    for n, c, t in np.ndindex(inputs.shape):
        normal = (float(inputs[n, c, t]) - float(mean[c])) / math.sqrt(float(variance[c]) + epsilon)
        result[n, c, t] = float(scale[c]) * normal + float(offset[c])
    return result
