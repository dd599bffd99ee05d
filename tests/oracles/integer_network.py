"""A residual network computed in integers with nested loops, as a textbook says it."""

from __future__ import annotations

import numpy as np

from tests.oracles.quantization import scale_and_zero_point

TEXT = """net (float[n, 3, 6, 6] x) => (float[n, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Add (c, r)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)
    g = GlobalAveragePool (p)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
}"""
SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (5, 4), "b3": (5,)}


def make_weights(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) / 3 for name, shape in SHAPES.items()}


def run(x, weights, ranges, bits):
    """Codes of every quantized tensor by name, and y in float; ``ranges`` are (minimum, maximum) by tensor."""
    scale = {name: scale_and_zero_point(*ends, 0, 255, 128, symmetric=False) for name, ends in ranges.items()}
    codes = {"x": requantize(x.astype(np.float64), *scale["x"])}
    codes["r"] = convolve(codes["x"], scale["x"], weights["w1"], weights["b1"], bits, scale["r"])
    codes["c"] = convolve(codes["r"], scale["r"], weights["w2"], weights["b2"], bits, scale["c"])
    codes["s"] = requantize(real(codes["c"], scale["c"]) + real(codes["r"], scale["r"]), *scale["s"])
    codes["p"] = pool(codes["s"])
    codes["g"] = requantize(real(codes["p"], scale["s"]).mean(axis=(2, 3), keepdims=True), *scale["g"])
    flat = codes["g"].reshape(len(x), -1)
    wq, ws = weight_codes(weights["w3"], bits)
    sums = (flat - scale["g"][1]) @ wq.T + np.rint(weights["b3"] / (float(scale["g"][0]) * ws)).astype(np.int64)
    return codes, sums * float(scale["g"][0]) * ws, scale


def real(codes, parameters):
    return (codes - int(parameters[1])) * float(parameters[0])


def requantize(values, scale, zero_point):
    return np.clip(np.rint(values / float(scale)) + int(zero_point), 0, 255).astype(np.int64)


def weight_codes(weight, bits):
    """Symmetric codes and scale of each output channel."""
    highest = 2 ** (bits - 1) - 1
    scale = np.array([np.abs(channel).max() / highest for channel in weight], np.float32).astype(np.float64)
    codes = [np.rint(channel / step) for channel, step in zip(weight.astype(np.float64), scale, strict=True)]
    return np.array(codes).astype(np.int64), scale


def convolve(codes, in_parameters, weight, bias, bits, out_parameters):
    """3 x 3, padded by 1 (with the zero point, which stands for 0), summed in integers, then put on the next grid."""
    in_scale, in_zero = float(in_parameters[0]), int(in_parameters[1])
    wq, ws = weight_codes(weight, bits)
    bq = np.rint(bias.astype(np.float64) / (in_scale * ws)).astype(np.int64)
    padded = np.pad(codes - in_zero, ((0, 0), (0, 0), (1, 1), (1, 1)))
    n, _, height, width = codes.shape
    sums = np.zeros((n, len(weight), height, width), np.int64)
    for example, channel, row, column in np.ndindex(sums.shape):
        patch = padded[example, :, row : row + 3, column : column + 3]
        sums[example, channel, row, column] = int((patch * wq[channel]).sum()) + bq[channel]
    return requantize(sums * (in_scale * ws)[:, None, None], *out_parameters)


def pool(codes):
    n, channels, height, width = codes.shape
    return codes.reshape(n, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
