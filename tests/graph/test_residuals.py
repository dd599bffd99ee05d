"""Residual blocks: from the last tensor that all paths to a sum pass through."""

from __future__ import annotations

import numpy as np
import pytest

from alula.graph.residuals import residual_blocks
from alula.testing.models import model_from_text

SQUARE = np.eye(4, dtype=np.float32)


def found(text: str, **weights: np.ndarray) -> list[tuple[str, str, int]]:
    blocks = residual_blocks(model_from_text(text, weights))
    return [(block.input, block.output, len(block.layers)) for block in blocks]


def test_one_with_a_linear_bottleneck_begins_at_a_layer():
    text = """n (float[b, 4] x) => (float[b, 4] y) { s = MatMul (x, w0)
        a = MatMul (s, w1) r = Relu (a) c = MatMul (r, w2) t = Add (s, c) y = MatMul (t, w3) }"""
    assert found(text, w0=SQUARE, w1=SQUARE, w2=SQUARE, w3=SQUARE) == [("s", "t", 2)]


def test_a_layer_may_go_around():
    text = """n (float[b, 4] x) => (float[b, 2] y) { s = Relu (x)
        a = MatMul (s, w1) r = Relu (a) c = MatMul (r, w2) d = MatMul (s, w3) t = Add (c, d) y = Relu (t) }"""
    assert found(text, w1=SQUARE, w2=SQUARE[:, :2], w3=SQUARE[:, :2]) == [("s", "t", 3)]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a = MatMul (x, w) y = Add (a, w)", 1),  # a bias
        ("a = MatMul (x, w) b = MatMul (a, v) y = Add (x, b)", 2),  # it would begin at an input of the graph
        ("s = Relu (x) a = MatMul (s, w) y = Add (s, a)", 1),  # one layer
        ("s = Relu (x) y = Add (s, s)", 0),
    ],
)
def test_none(text, weights):
    named = dict(zip("wv"[:weights], (SQUARE, SQUARE), strict=False))
    assert found(f"n (float[4, 4] x) => (float[4, 4] y) {{ {text} }}", **named) == []


@pytest.mark.parametrize("seed", range(30))
def test_it_begins_where_every_path_passes(seed):
    """Beside the last node without which nothing leads from the input to the sum."""
    random = np.random.default_rng(seed)
    lines, reads = [], dict[str, tuple[str, ...]]()
    for number in range(12):
        known = ["x", *reads]
        adds = number > 2 and random.random() < 0.5
        chosen = random.choice(known[-4:], 2 if adds else 1, replace=False).tolist()
        reads[f"t{number}"] = tuple(chosen)
        lines.append(f"t{number} = Add ({chosen[0]}, {chosen[1]})" if adds else f"t{number} = MatMul ({chosen[0]}, w)")
    made = found(f"n (float[4, 4] x) => (float[4, 4] t11) {{ {' '.join(lines)} }}", w=SQUARE)
    wanted = []
    for name, read in reads.items():
        if len(read) == 2 and (start := last_without_which(name, reads)) is not None:
            layers = sum(len(reads[one]) == 1 for one in between(start, name, reads))
            wanted += [(start, name, layers)] if layers > 1 else []
    assert made == [one for one in wanted if one[1] in needed("t11", reads)]


def leads(name: str, reads: dict[str, tuple[str, ...]], without: str) -> bool:
    """Whether a path from x comes to a tensor that does not pass through another."""
    if name == without:
        return False
    return name == "x" or any(leads(one, reads, without) for one in reads[name])


def last_without_which(name: str, reads: dict[str, tuple[str, ...]]) -> str | None:
    before = [one for one in reads if one != name and not leads(name, reads, one)]
    return before[-1] if before else None


def needed(name: str, reads: dict[str, tuple[str, ...]]) -> set[str]:
    return {name} | {two for one in reads.get(name, ()) for two in needed(one, reads)}


def between(start: str, end: str, reads: dict[str, tuple[str, ...]]) -> set[str]:
    return {one for one in needed(end, reads) if one not in ("x", start) and start in needed(one, reads)}
