"""What each operator does to channels of a stream (:mod:`alula.graph.streams`); one without a rule is an obstacle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx_ir as ir

from alula.graph.lengths import whole_numbers
from alula.graph.streams import Gain, Lane, Stream, Use, is_constant, last_of, rank_of

Rule = Callable[[Stream, ir.Node, ir.Value], None]

_CENTRED: Final = frozenset({"LayerNormalization"})
_LENGTHS: Final = frozenset({"ReduceL2", "ReduceSumSquare"})
_NORMALISATIONS: Final = _CENTRED | {"RMSNormalization", "SimplifiedLayerNormalization"}


def is_product_of_activations(node: ir.Node) -> bool:
    """Whether a node is a MatMul of two tensors that are both computed."""
    return node.op_type == "MatMul" and not any(map(is_weight, node.inputs))


def is_weight(value: ir.Value | None) -> bool:
    """Whether a tensor is a constant, or one that is transposed while running, as heads tied to a table are."""
    return weight_use(value) is not None or is_constant(value)


def weight_use(value: ir.Value | None) -> tuple[Use, bool] | None:
    """Who reads the initializer that a matrix is the transpose of, and True; None for any other tensor."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or not is_constant(node.inputs[0]) or value is None:
        return None
    return ((node, 0), True) if len(value.uses()) == 1 and not value.is_graph_output() else None


def normalised_inputs(graph: ir.Graph) -> Iterator[ir.Value]:
    """What is normalised over its last axis, by an operator of its own or through the mean of its squares."""
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if value is None or is_constant(value) or node.domain not in ("", "com.microsoft"):
            continue
        squared = _squares(node) and any(_over_last(use.node) for use in node.outputs[0].uses())
        named = node.op_type in _NORMALISATIONS and _norm_axis_is_last(node)
        if squared or named or (node.op_type in _LENGTHS and _over_last(node)):
            yield value


def add(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Add, Sub, Sum: all sides are on the stream; a constant behind a gain is its shift."""
    gained = [operand for operand in node.inputs if operand is not None and _gain(stream, operand)]
    if gained:
        _shift(stream, node, gained[0])
        return
    lane = stream.lanes[value]
    for index, operand in enumerate(node.inputs):
        if operand is not None and last_of(operand) == 1:
            stream.keeps_mean = True
        elif operand is not None:
            _tie(stream, node, index, lane)
    stream.join(node.outputs[0], lane)


def _shift(stream: Stream, node: ir.Node, gained: ir.Value) -> None:
    lane = stream.lanes[gained]
    constants = [index for index, operand in enumerate(node.inputs) if is_constant(operand)]
    alone = len(gained.uses()) == 1 and len(constants) == 1 and node.op_type == "Add"
    fits = alone and _is_by_channel(node.inputs[constants[0]], lane.stop)
    if not fits or lane.gain is None or lane.gain.shift not in (None, (node, constants[0])):
        stream.bar(f"{gained.name!r} is scaled by channel, and {node.op_type} {node.name!r} adds it to something")
        stream.join(node.outputs[0])  # so that all that hangs together is one stream, with one note
        return
    lane.gain.shift = (node, constants[0])
    stream.join(node.outputs[0], lane)


def multiply(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Mul: by one number per row; by a gain that is constant; by itself, for a mean over channels."""
    (made,) = node.outputs
    if _squares(node):
        _expect_mean_of_squares(stream, node, value)
        return
    narrow = [index for index, operand in enumerate(node.inputs) if operand is not None and _is_even(operand)]
    if len(narrow) == 1:
        _scale_rows(stream, node, 1 - narrow[0], value)
        return
    constants = [index for index, operand in enumerate(node.inputs) if is_constant(operand)]
    operand = node.inputs[1 - constants[0]] if len(constants) == 1 else None
    if operand is None or operand not in stream.lanes or not _is_by_channel(node.inputs[constants[0]], last_of(made)):
        stream.bar(f"{node.op_type} {node.name!r} multiplies channels one by one")
        return
    _scale(stream, operand, made, (node, constants[0]), None)


def _scale_rows(stream: Stream, node: ir.Node, index: int, value: ir.Value) -> None:
    if _gain(stream, value):
        stream.bar(f"{node.op_type} {node.name!r} scales again what is scaled by channel")
    else:
        _follow(stream, node, index, value)


def _scale(stream: Stream, given: ir.Value, made: ir.Value, use: Use, shift: Use | None) -> None:
    """What a tensor on the stream gives, scaled by channel."""
    known = stream.lanes.get(made)
    if known is not None and known.gain is not None and known.gain.use == use:
        return
    lane = stream.lanes[given]
    if lane.gain is not None or (lane.start, lane.stop) != (0, last_of(given)):
        stream.bar(f"{use[0].op_type} {use[0].name!r} scales again what is scaled by channel, or parts of it")
        return
    stream.join(made, Lane(0, last_of(made), Gain(use, shift)))


def divide(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Div: by one number per row."""
    divisor = node.inputs[1]
    if divisor is not None and _is_even(divisor):
        _scale_rows(stream, node, 0, value)
    else:
        stream.bar(f"Div {node.name!r} divides channels one by one")


def power(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Pow: squares, if what comes of them is a mean over channels."""
    if _squares(node):
        _expect_mean_of_squares(stream, node, value)
    else:
        stream.bar(f"Pow {node.name!r} is no square")


def _expect_mean_of_squares(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    (made,) = node.outputs
    if value is made or _gain(stream, value) or not all(_over_last(use.node) for use in made.uses()):
        stream.bar(f"{node.op_type} {node.name!r} squares channels, and not to take the mean of a whole row")
    elif not _is_whole(stream, value) or made.is_graph_output():
        stream.bar(f"{node.op_type} {node.name!r} squares parts of a row")


def reduce(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Means, sums and norms: of whole rows they stay; along other axes they are on the stream."""
    given = node.inputs[0]
    if given is not None and not _reads_last(node):
        _follow(stream, node, 0, value) if not _gain(stream, value) else stream.bar(_mixes(node))
        return
    if value is not given or _gain(stream, value) or not _over_last(node) or not _is_whole(stream, value):
        stream.bar(_mixes(node))
    elif node.op_type in ("ReduceMean", "ReduceSum", "GlobalAveragePool"):
        stream.keeps_mean = True
    elif node.op_type not in _LENGTHS:
        stream.bar(_mixes(node))


def _mixes(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r} mixes channels otherwise than by a mean over all of them"


def normalise(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """LayerNormalization and its like: on the stream but for gain and shift."""
    given, (made, *others) = node.inputs[0], node.outputs
    if given is None or not _norm_axis_is_last(node) or any(one.uses() or one.is_graph_output() for one in others):
        stream.bar(f"{node.op_type} {node.name!r} normalises over other axes too, or gives more than that")
        return
    if value is made and given not in stream.lanes:
        stream.join(given)
    if given not in stream.lanes or stream.lanes[given].gain is not None or not _is_whole(stream, given):
        stream.bar(f"{node.op_type} {node.name!r} normalises what is scaled by channel, or parts of rows")
        return
    stream.keeps_mean |= node.op_type in _CENTRED
    shift = (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if not all(is_constant(parameter) for parameter in node.inputs[1:] if parameter is not None):
        stream.bar(f"gain or shift of {node.op_type} {node.name!r} is computed, not constant")
    elif len(node.inputs) < 2 or _is_even(node.inputs[1]):
        if shift is not None:
            _tie(stream, *shift, stream.lanes[given])
        stream.join(made)
    else:
        _scale(stream, given, made, (node, 1), shift)


def product(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """MatMul: a layer reads the stream, or gives to it; of two tensors, rows of the right one are summed."""
    left, right = node.inputs
    if not is_weight(right):
        if value is left or right is None or left in stream.lanes or rank_of(right) < 2:
            stream.bar(f"MatMul {node.name!r} sums channels of {value.name!r} with another tensor's, or row by row")
        else:
            _follow(stream, node, 1, value)
        return
    use, turned = weight_use(right) or ((node, 1), False)
    _layer(stream, node, value, use, 1 if turned else 0)


def general_product(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Gemm: a layer with a bias."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not is_constant(node.inputs[1]) or int(node.attributes.get_int("transA", 0)):
        stream.bar(f"Gemm {node.name!r} multiplies two tensors that are both computed")
        return
    if value is bias:
        stream.bar(f"Gemm {node.name!r} adds it to its product")
        return
    _layer(stream, node, value, (node, 1), int(node.attributes.get_int("transB", 0)))
    if value is not node.outputs[0] or bias is None:
        return
    if last_of(bias) == 1:
        stream.keeps_mean = True
    else:
        _tie(stream, node, 2, stream.lanes[value])


def _layer(stream: Stream, node: ir.Node, value: ir.Value, use: Use, input_axis: int) -> None:
    matrix = use[0].inputs[use[1]]
    lane = stream.lanes[value]
    if matrix is None or rank_of(matrix) != 2:
        stream.bar(f"the weight of {node.op_type} {node.name!r} is a stack of matrices")
    elif value is node.outputs[0]:
        stream.put(use, 1 - input_axis, lane, node)
    elif _is_whole(stream, value):
        stream.put(use, input_axis, lane, node)
    else:
        stream.bar(f"{node.op_type} {node.name!r} reads other channels beside those of the stream")


def gather(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Gather: rows of a table, or some of the rows of a tensor."""
    data = node.inputs[0]
    axis = int(node.attributes.get_int("axis", 0))
    if data is None or value is node.inputs[1] or axis in (-1, rank_of(data) - 1):
        stream.bar(f"Gather {node.name!r} picks channels")
    elif is_constant(data):
        stream.put((node, 0), rank_of(data) - 1, stream.lanes[value], node)
    else:
        _follow(stream, node, 0, value)


def reshape(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Reshape: whole runs stay whole, however many there are in a row."""
    given, (made,) = node.inputs[0], node.outputs
    lane = stream.lanes[value]
    if given is None or not last_of(given) or not last_of(made):
        stream.bar(f"Reshape {node.name!r} gives channels whose number is not known")
    elif last_of(given) == last_of(made):
        _follow(stream, node, 0, value)
    elif not _is_whole(stream, value) or lane.gain is not None:
        stream.bar(f"Reshape {node.name!r} parts what is scaled by channel, or lies beside other channels")
    else:
        stream.join(given)
        stream.join(made)


def rearrange(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """What keeps rows whole: Transpose, Squeeze, Unsqueeze, Expand, Identity, Dropout."""
    given, made = node.inputs[0], node.outputs[0]
    patches = _convolution(node) if value is made else None
    if patches is not None:
        _convolved(stream, patches, stream.lanes[made])
    elif value not in (given, made) or given is None or not _keeps_rows(node, given, made):
        stream.bar(f"{node.op_type} {node.name!r} moves channels to another axis")
    else:
        _follow(stream, node, 0, value)


def _keeps_rows(node: ir.Node, given: ir.Value, made: ir.Value) -> bool:
    if last_of(given) != last_of(made) or any(other.uses() for other in node.outputs[1:]):
        return False
    match node.op_type:
        case "Transpose":
            perm = list(node.attributes.get_ints("perm", ()))
            return bool(perm) and perm[-1] == len(perm) - 1
        case "Squeeze" | "Unsqueeze":
            axes = whole_numbers(node, 1, "axes")
            wider = max(rank_of(given), rank_of(made))
            return axes is not None and all(axis % wider != wider - 1 for axis in axes)
        case _:
            return True


def _convolution(node: ir.Node) -> ir.Node | None:
    """The convolution whose channels a Transpose makes the last axis, as those of patches are."""
    perm = list(node.attributes.get_ints("perm", ()))
    maker = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
    if maker is not None and maker.op_type == "Reshape" and rank_of(maker.outputs[0]) == 3 and _is_read_once(maker):
        before, after = maker.inputs[0], maker.outputs[0].shape
        known = before is not None and before.shape is not None and after is not None and len(before.shape) > 3
        same = known and before.shape[1] == after[1] and isinstance(after[1], int)  # type: ignore[union-attr,index]
        maker = before.producer() if same else None  # type: ignore[union-attr]
    able = maker is not None and maker.op_type == "Conv" and _is_read_once(maker) and is_constant(maker.inputs[1])
    plain = able and int(maker.attributes.get_int("group", 1)) == 1 and perm[-1:] == [1]  # type: ignore[union-attr]
    return maker if plain and is_constant((*maker.inputs, maker.inputs[1])[2]) else None  # type: ignore[union-attr]


def _is_read_once(node: ir.Node) -> bool:
    (made,) = node.outputs
    return len(made.uses()) == 1 and not made.is_graph_output()


def _convolved(stream: Stream, node: ir.Node, lane: Lane) -> None:
    stream.put((node, 1), 0, lane, node)
    if len(node.inputs) > 2:
        stream.put((node, 2), 0, lane)


def concat(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Concat: along another axis, all parts are on the stream."""
    if int(node.attributes.get_int("axis", 0)) in (-1, rank_of(node.outputs[0]) - 1):
        stream.bar(f"Concat {node.name!r} puts other channels beside those of the stream")
        return
    for index in range(len(node.inputs)):
        _tie(stream, node, index, stream.lanes[value])
    stream.join(node.outputs[0], stream.lanes[value])


def cut(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Split, Slice: along another axis all is on the stream; along the channels, one span of them."""
    given = node.inputs[0]
    pieces = None if given is None else _pieces(node, given)
    if given is None or pieces is None or value not in (given, *node.outputs):
        stream.bar(f"{node.op_type} {node.name!r} cuts channels at places that are not known")
        return
    lane = stream.lanes[value]
    if not pieces:
        for one in (given, *node.outputs):
            stream.join(one, lane)
        return
    for made, start, stop in pieces:
        if value is made:
            stream.join(given, Lane(start + lane.start, start + lane.stop, lane.gain))
        elif value is given and (start, stop) == (lane.start, lane.stop):
            stream.join(made, Lane(0, stop - start, lane.gain))
        elif value is given and start < lane.stop and stop > lane.start:
            stream.bar(f"{node.op_type} {node.name!r} cuts channels apart that turn together")


def _pieces(node: ir.Node, given: ir.Value) -> list[tuple[ir.Value, int, int]] | None:
    """Spans of the last axis and what they become; none, where another axis is cut; None, where it is not known."""
    if node.op_type == "Slice":
        return _sliced(node, given)
    if int(node.attributes.get_int("axis", 0)) not in (-1, rank_of(given) - 1):
        return []
    ends = np.cumsum([last_of(made) for made in node.outputs]).tolist()
    return [(made, end - last_of(made), end) for made, end in zip(node.outputs, ends, strict=True)]


def _sliced(node: ir.Node, given: ir.Value) -> list[tuple[ir.Value, int, int]] | None:
    starts, ends, axes = (whole_numbers(node, index, name) for index, name in enumerate(("starts", "ends", "axes"), 1))
    if axes is None:
        return None
    cuts = [index for index, axis in enumerate(axes) if axis in (-1, rank_of(given) - 1)]
    if not cuts or starts is None or ends is None:
        return None if cuts else []
    steps = whole_numbers(node, 4, "steps") or [1] * len(axes)
    start, stop, step = slice(starts[cuts[0]], ends[cuts[0]], steps[cuts[0]]).indices(last_of(given))
    if (start, stop, step) == (0, last_of(given), 1):
        return []
    return [(node.outputs[0], start, stop)] if step == 1 else None


def ignore(stream: Stream, node: ir.Node, value: ir.Value) -> None:
    """Shape, Size: read no values."""


def _follow(stream: Stream, node: ir.Node, index: int, value: ir.Value) -> None:
    """One input and the first output are on the stream alike."""
    lane = stream.lanes[value]
    _tie(stream, node, index, lane)
    stream.join(node.outputs[0], lane)


def _tie(stream: Stream, node: ir.Node, index: int, lane: Lane) -> None:
    operand = node.inputs[index]
    assert operand is not None
    if not is_constant(operand):
        stream.join(operand, lane)
    elif last_of(operand) < lane.stop or lane.gain is not None:
        stream.bar(f"the constant {operand.name!r} has not the channels of the stream")
    else:
        stream.put((node, index), rank_of(operand) - 1, dataclasses.replace(lane, gain=None))


def _gain(stream: Stream, value: ir.Value) -> bool:
    return value in stream.lanes and stream.lanes[value].gain is not None


def _is_whole(stream: Stream, value: ir.Value) -> bool:
    lane = stream.lanes[value]
    return (lane.start, lane.stop) == (0, last_of(value))


def _is_even(value: ir.Value | None) -> bool:
    """Whether a tensor has one number per row, or the same for all."""
    if value is None or not is_constant(value):
        return value is not None and last_of(value) == 1
    if last_of(value) == 1:
        return True
    assert value.const_value is not None
    array = value.const_value.numpy()
    return array.size > 0 and bool((array == array.flat[0]).all())


def _is_by_channel(value: ir.Value | None, channels: int) -> bool:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.size == last_of(value) == channels


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    return is_constant(exponent) and bool((exponent.const_value.numpy() == 2).all())  # type: ignore[union-attr]


def _norm_axis_is_last(node: ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and int(node.attributes.get_int("axis", -1)) in (-1, rank_of(value) - 1)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of what a node reduces, from 0 on; None where they are not known."""
    value = node.inputs[0]
    rank = -1 if value is None else rank_of(value)
    if rank < 1 or (node.op_type not in _REDUCTIONS):
        return None
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = whole_numbers(node, 1, "axes")
    return None if axes is None else [axis % rank for axis in axes]


def _over_last(node: ir.Node) -> bool:
    """Whether a node reduces rows, and nothing but them."""
    value, axes = node.inputs[0], _axes(node)
    return value is not None and axes == [rank_of(value) - 1]


def _reads_last(node: ir.Node) -> bool:
    value, axes = node.inputs[0], _axes(node)
    others = node.op_type in ("ReduceMean", "ReduceSum")  # linear along other axes
    return axes is None or value is None or rank_of(value) - 1 in axes or not others


_REDUCTIONS: Final = frozenset({"GlobalAveragePool", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"})
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(("Add", "Sub", "Sum"), add),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(_NORMALISATIONS, normalise),
    **dict.fromkeys(("Dropout", "Expand", "Identity", "Squeeze", "Transpose", "Unsqueeze"), rearrange),
    **dict.fromkeys(("Shape", "Size"), ignore),
    **dict.fromkeys(("Slice", "Split"), cut),
    "Concat": concat,
    "Div": divide,
    "Gather": gather,
    "Gemm": general_product,
    "MatMul": product,
    "Mul": multiply,
    "Pow": power,
    "Reshape": reshape,
}
