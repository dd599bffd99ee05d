from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from alula.errors import DataError, RecipeError
from alula.numerics.grids import (
    Grid,
    codes_from,
    dequantize,
    extremes,
    parameter_shape,
    quantize,
    scale_and_zero_point,
)
from tests.oracles import quantization as oracle

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).tiny

grids = st.builds(Grid, st.sampled_from(WIDTHS), st.booleans(), st.booleans(), st.booleans())
finite = st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100)


@st.composite
def cases(draw):
    """An array with a grid, an axis and a block that fit it."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    count = int(np.prod(shape))
    array = np.array(draw(st.lists(finite, min_size=count, max_size=count)), np.float32).reshape(shape)
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    block = None if axis is None else draw(st.none() | st.integers(1, 6))
    return array, draw(grids), axis, block


@pytest.mark.parametrize(
    ("grid", "lowest", "highest", "middle", "storage"),
    [
        (Grid(8), -128, 127, 0, np.int8),
        (Grid(8, narrow=True), -127, 127, 0, np.int8),
        (Grid(8, signed=False), 0, 255, 128, np.uint8),
        (Grid(8, signed=False, narrow=True), 1, 255, 128, np.uint8),
        (Grid(4), -8, 7, 0, ml_dtypes.int4),
        (Grid(4, signed=False, symmetric=False), 0, 15, 8, ml_dtypes.uint4),
        (Grid(2, narrow=True), -1, 1, 0, ml_dtypes.int2),
        (Grid(2, signed=False), 0, 3, 2, ml_dtypes.uint2),
        (Grid(3), -4, 3, 0, np.int8),
        (Grid(6, signed=False), 0, 63, 32, np.uint8),
        (Grid(16), -32768, 32767, 0, np.int16),
        (Grid(16, signed=False), 0, 65535, 32768, np.uint16),
    ],
)
def test_a_grid_knows_its_codes(grid, lowest, highest, middle, storage):
    assert (grid.lowest, grid.highest, grid.middle, grid.storage) == (lowest, highest, middle, np.dtype(storage))
    assert grid.levels == highest - lowest + 1


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 15, 17, 32])
def test_other_widths_are_refused(bits):
    with pytest.raises(RecipeError, match=f"bits={bits}"):
        Grid(bits)


@settings(max_examples=100, deadline=None)
@given(finite, finite, grids)
def test_scale_and_zero_point_match_the_oracle(a, b, grid):
    low, high = min(a, b), max(a, b)
    scale, zero_point = scale_and_zero_point(low, high, grid)
    assert scale.dtype == np.float32
    assert zero_point.dtype == grid.storage
    wanted = oracle.scale_and_zero_point(low, high, grid.lowest, grid.highest, grid.middle, grid.symmetric)
    assert (scale, int(zero_point)) == wanted


@settings(max_examples=100, deadline=None)
@given(cases())
def test_quantize_matches_the_oracle_loop(case):
    array, grid, axis, block = case
    result = quantize(array, grid, axis=axis, block=block)
    codes, parameters = oracle.quantize(array, grid, axis, block)
    assert result.codes.shape == array.shape
    assert result.codes.dtype == result.zero_point.dtype == grid.storage
    assert result.scale.shape == result.zero_point.shape == parameter_shape(array.shape, axis, block)
    assert set(np.ndindex(result.scale.shape)) == set(parameters)
    assert {i: int(result.codes[i]) for i in codes} == codes
    assert {i: (result.scale[i], int(result.zero_point[i])) for i in parameters} == parameters


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_value_moves_by_more_than_half_a_step_and_zero_not_at_all(case):
    array, grid, axis, block = case
    result = quantize(array, grid, axis=axis, block=block)
    back = result.dequantize()
    for index in np.ndindex(array.shape):
        scale = float(result.scale[oracle.parameter_index(index, axis, block)])
        allowed = scale * (0.5 + grid.levels * 2.0**-22)  # float32 holds x / s to 24 bits
        assert abs(float(array[index]) - float(back[index])) <= allowed
        assert array[index] != 0 or back[index] == 0


@settings(max_examples=50, deadline=None)
@given(cases())
def test_quantizing_again_changes_nothing(case):
    array, grid, axis, block = case
    once = quantize(array, grid, axis=axis, block=block)
    again = codes_from(once.dequantize(), once.scale, once.zero_point, grid, axis=axis, block=block)
    np.testing.assert_array_equal(again.astype(int), once.codes.astype(int))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_does_not_rise_with_bits(signed, symmetric):
    array = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for axis, block in ((None, None), (0, None), (1, 16)):
        errors = [
            np.square(quantize(array, Grid(bits, signed, symmetric), axis=axis, block=block).dequantize() - array).sum()
            for bits in WIDTHS
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-5


def test_weights_of_one_sign_use_the_whole_asymmetric_grid():
    array = np.linspace(-3, -1, 50, dtype=np.float32)
    result = quantize(array, Grid(8, signed=False, symmetric=False))
    assert result.zero_point == 255
    assert result.codes.min() == 0
    np.testing.assert_allclose(result.dequantize(), array, atol=3 / 255 / 2 + 1e-6)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, signed=False), Grid(2, symmetric=False), Grid(16)])
def test_all_zeros_have_scale_one(grid):
    result = quantize(np.zeros((3, 4), np.float32), grid, axis=0)
    np.testing.assert_array_equal(result.scale, np.ones(3))
    np.testing.assert_array_equal(result.codes, result.zero_point.astype(result.codes.dtype)[:, None].repeat(4, 1))
    np.testing.assert_array_equal(result.dequantize(), 0)


@pytest.mark.parametrize("constant", [5.0, -5.0, 1e-30, LARGEST, -LARGEST])
@pytest.mark.parametrize("grid", [Grid(8), Grid(8, narrow=True), Grid(8, False, False), Grid(2), Grid(2, True, False)])
def test_constants_survive(constant, grid):
    back = quantize(np.full(4, constant, np.float32), grid).dequantize()
    np.testing.assert_allclose(back, constant, rtol=1e-6)


@pytest.mark.parametrize(
    "grid", [Grid(bits, s, y) for bits in (2, 4, 8, 16) for s in (True, False) for y in (True, False)]
)
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.3, 1), (0, 1), (-1, 0), (-1, 0.002)])
def test_ranges_as_wide_as_float32_do_not_overflow(grid, low, high):
    array = np.array([low, high, 0, low / 3, high / 7], np.float64) * float(LARGEST)
    result = quantize(array, grid)
    back = result.dequantize()
    assert np.isfinite(result.scale)
    assert np.isfinite(back).all()
    steps = 0.5 if grid.symmetric else 1.0  # an asymmetric range that the zero point would push past the end gives way
    assert np.abs(back - array).max() <= float(result.scale) * (steps + grid.levels * 2.0**-22)


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, False, False), Grid(4, False, True), Grid(16, True, False)])
@pytest.mark.parametrize("width", [1.4e-45, 1e-42, 1.1e-38, 1e-36])
def test_subnormal_ranges_get_a_normal_scale(grid, width):
    array = np.array([-width, 0, width], np.float32)
    result = quantize(array, grid)
    assert result.scale >= TINY
    assert np.abs(result.dequantize() - array).max() <= result.scale / 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([np.nan, 1, np.nan], "2 NaN and 0 infinite.*of 3"),
        ([np.inf, -np.inf, np.nan], "1 NaN and 2 infinite.*of 3"),
        (np.array([1e300]), "0 NaN and 1 infinite"),
        (np.array([1j]), "real numbers.*complex128"),
        (np.array(["a"]), "real numbers"),
        (np.array([None]), "real numbers.*object"),
    ],
)
def test_values_that_are_not_finite_numbers_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        quantize(bad, Grid(8))


@pytest.mark.parametrize(
    ("minimum", "maximum", "message"),
    [
        (1, -1, r"got \[1, -1\]"),
        (np.nan, 1, "must be finite"),
        (0, np.inf, "must be finite"),
        ([0, 0], 1, r"shape \(2,\) does not fit"),
    ],
)
def test_impossible_ranges_are_refused(minimum, maximum, message):
    with pytest.raises(DataError, match=message):
        quantize(np.zeros((3, 3)), Grid(8), axis=0, minimum=minimum, maximum=maximum)


@pytest.mark.parametrize(
    ("axis", "block", "message"),
    [(2, None, "axis=2"), (-3, None, "axis=-3"), (None, 4, "no axis"), (0, 0, "block=0"), (0, -1, "block=-1")],
)
def test_axes_and_blocks_that_do_not_fit_are_refused(axis, block, message):
    with pytest.raises(RecipeError, match=message):
        quantize(np.zeros((3, 3)), Grid(8), axis=axis, block=block)


def test_parameters_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"shape \(3,\), got \(2,\)"):
        codes_from(np.zeros((3, 3)), np.ones(2), np.zeros(2), Grid(8), axis=0)


def test_a_given_range_saturates():
    result = quantize(np.array([-9.0, -1, 0, 1, 9], np.float32), Grid(8), minimum=-1, maximum=1)
    np.testing.assert_array_equal(result.codes, [-128, -127, 0, 127, 127])
    one_end = quantize(np.array([-2.0, 9], np.float32), Grid(8, False, False), maximum=2)
    np.testing.assert_allclose(one_end.dequantize(), [-2, 2], atol=0.02)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (-1, None), (0, 2), (-1, 2)])
def test_empty_arrays_work(shape, axis, block):
    result = quantize(np.zeros(shape, np.float32), Grid(4), axis=axis, block=block)
    assert result.codes.shape == result.dequantize().shape == shape
    assert result.scale.shape == parameter_shape(shape, axis, block)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.int32, np.bool_])
def test_other_real_types_are_read_as_float32(dtype):
    array = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    result, wanted = quantize(array, Grid(8), axis=0), quantize(array.astype(np.float32), Grid(8), axis=0)
    np.testing.assert_array_equal(result.codes, wanted.codes)
    np.testing.assert_array_equal(result.scale, wanted.scale)


def test_the_input_is_not_changed():
    array = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    kept = array.copy()
    result = quantize(array, Grid(4), axis=1, block=4)
    codes = result.codes.copy()
    result.dequantize()
    np.testing.assert_array_equal(array, kept)
    np.testing.assert_array_equal(result.codes, codes)


def test_extremes_of_short_blocks():
    low, high = extremes(np.array([[3.0, 1, 2], [-4, 5, -6]]), axis=1, block=2)
    np.testing.assert_array_equal(low, [[1, 2], [-4, -6]])
    np.testing.assert_array_equal(high, [[3, 2], [5, -6]])


def _onnx_round_trip(array, scale, zero_point, axis, block):
    """Codes and values as ONNX Runtime computes them: opset 21, or 25 for 2 bits."""
    attributes = {} if axis is None else {"axis": axis}
    attributes |= {} if block is None else {"block_size": block}
    constants = [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero_point, "z")]
    code_type = constants[1].data_type
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
            helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        ],
        "round trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, array.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name in ("c", "y")],
        constants,
        value_info=[helper.make_tensor_value_info("q", code_type, array.shape)],
    )
    opset, ir_version = (25, 13) if code_type in {TensorProto.INT2, TensorProto.UINT2} else (21, 10)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["c", "y"], {"x": array})


@pytest.mark.parametrize("grid", [Grid(b, s, y) for b in (2, 4, 8, 16) for s in (True, False) for y in (True, False)])
@pytest.mark.parametrize(
    ("shape", "axis", "block"),
    [((), None, None), ((4, 6), None, None), ((3, 4, 5), 1, None), ((8, 6), 0, 4), ((6, 8), -1, 2), ((5, 7), 1, 3)],
)
def test_codes_and_values_are_those_of_onnx_runtime(grid, shape, axis, block):
    generator = np.random.default_rng(len(shape) + grid.bits)
    array = np.asarray(generator.standard_normal(shape) * 3, np.float32)
    halves = np.asarray(generator.integers(-20, 20, shape) / 2, np.float32)  # ties
    scale, zero_point = scale_and_zero_point(*(e / 2 for e in extremes(array, axis=axis, block=block)), grid)
    for values, step in ((array, scale), (halves, np.ones_like(scale))):
        codes = codes_from(values, step, zero_point, grid, axis=axis, block=block)
        back = dequantize(codes, step, zero_point, axis=axis, block=block)
        wanted_codes, wanted = _onnx_round_trip(values, step, zero_point, axis, block)
        np.testing.assert_array_equal(codes.astype(np.float32), wanted_codes)
        np.testing.assert_array_equal(back, wanted)
