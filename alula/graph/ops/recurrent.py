"""Recurrent networks: LSTM, GRU and plain RNN over sequences.

Torch's fused kernels run what they can run; peepholes, other activations, clipping, and sequences of different lengths
are run step by step. Shapes: x [T, N, I], weights [D, gates * H, I], states [D, N, H], with D directions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.errors import ModelError
from alula.graph.ops.shaping import reverse_sequence

Activation = Callable[[Tensor, float | None, float | None], Tensor]

ACTIVATIONS: Final[dict[str, Activation]] = {
    "affine": lambda x, a, b: (1.0 if a is None else a) * x + (0.0 if b is None else b),
    "elu": lambda x, a, _: F.elu(x, 1.0 if a is None else a),
    "hardsigmoid": lambda x, a, b: torch.clamp((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1),
    "leakyrelu": lambda x, a, _: F.leaky_relu(x, 0.01 if a is None else a),
    "relu": lambda x, *_: torch.relu(x),
    "scaledtanh": lambda x, a, b: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x),
    "sigmoid": lambda x, *_: torch.sigmoid(x),
    "softplus": lambda x, *_: F.softplus(x),
    "softsign": lambda x, *_: F.softsign(x),
    "tanh": lambda x, *_: torch.tanh(x),
    "thresholdedrelu": lambda x, a, _: torch.where(x > (1.0 if a is None else a), x, torch.zeros_like(x)),
}  # by ONNX's names, of alpha and beta


@dataclass(frozen=True, slots=True)
class Settings:
    """ONNX's attributes that all three share."""

    hidden_size: int | None = None
    direction: str = "forward"
    activations: Sequence[str] = ()
    activation_alpha: Sequence[float] = ()
    activation_beta: Sequence[float] = ()
    clip: float | None = None
    layout: int = 0
    input_forget: int = 0
    linear_before_reset: int = 0

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.direction == "bidirectional" else 1

    def is_plain(self, defaults: Sequence[str]) -> bool:
        """Whether torch's kernels know it: the usual activations, nothing clipped, forget gates of their own."""
        names = [name.lower() for name in self.activations] or list(defaults) * self.directions
        return names == list(defaults) * self.directions and not self.clip and not self.input_forget


Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Weights:
    """What one direction has: w [gates * H, I], r [gates * H, H], its biases [gates * H], peepholes [3 * H]."""

    w: Tensor
    r: Tensor
    bias_w: Tensor
    bias_r: Tensor
    peepholes: Tensor | None = None
    functions: tuple[Callable[[Tensor], Tensor], ...] = ()


def lstm(*inputs: Tensor | None, outputs: int = 3, **attributes: Any) -> tuple[Tensor, ...]:
    """LSTM of x, w (gates i, o, f, c), r, bias, lengths, first h, first c, peepholes: all steps, last h, last c."""
    how = Settings(**attributes)
    x, w, r, bias, lengths, h, c, peepholes = _complete(inputs, 8)
    x, states = _begin(x, how, [h, c], r.shape[-1])
    if how.is_plain(("sigmoid", "tanh", "tanh")) and lengths is None and peepholes is None:
        return _finish(*_run_fused(torch.lstm, x, (w, r, bias), states, (0, 2, 3, 1), how), how)
    return _finish(*_run_steps(x, (w, r, bias), states, (lengths, peepholes), how, ("sigmoid", "tanh", "tanh")), how)


def gru(*inputs: Tensor | None, outputs: int = 2, **attributes: Any) -> tuple[Tensor, ...]:
    """GRU of x, w (gates z, r, h), r, bias, lengths, first h: all steps, last h."""
    how = Settings(**attributes)
    x, w, r, bias, lengths, h = _complete(inputs, 6)
    x, states = _begin(x, how, [h], r.shape[-1])
    if how.is_plain(("sigmoid", "tanh")) and lengths is None and how.linear_before_reset:
        return _finish(*_run_fused(torch.gru, x, (w, r, bias), states, (1, 0, 2), how), how)
    return _finish(*_run_steps(x, (w, r, bias), states, (lengths, None), how, ("sigmoid", "tanh")), how)


def rnn(*inputs: Tensor | None, outputs: int = 2, **attributes: Any) -> tuple[Tensor, ...]:
    """RNN of x, w, r, bias, lengths, first h: all steps, last h."""
    how = Settings(**attributes)
    x, w, r, bias, lengths, h = _complete(inputs, 6)
    x, states = _begin(x, how, [h], r.shape[-1])
    for name, kernel in (("tanh", torch.rnn_tanh), ("relu", torch.rnn_relu)):
        if how.is_plain((name,)) and (how.activations or name == "tanh") and lengths is None:
            return _finish(*_run_fused(kernel, x, (w, r, bias), states, (0,), how), how)
    return _finish(*_run_steps(x, (w, r, bias), states, (lengths, None), how, ("tanh",)), how)


def _complete(inputs: Sequence[Tensor | None], count: int) -> list[Any]:
    return [*inputs, *[None] * (count - len(inputs))]


def _begin(x: Tensor, how: Settings, states: Sequence[Tensor | None], hidden: int) -> tuple[Tensor, list[Tensor]]:
    """Time first; states that are not given are zeros."""
    if how.layout:
        x = x.transpose(0, 1)
    found = []
    for state in states:
        if state is None:
            found.append(x.new_zeros(how.directions, x.shape[1], hidden))
        else:
            found.append(state.transpose(0, 1) if how.layout else state)
    return x, found


def _finish(y: Tensor, states: Sequence[Tensor], how: Settings) -> tuple[Tensor, ...]:
    """Y [T, D, N, H] and states [D, N, H] in the layout asked for."""
    if not how.layout:
        return (y, *states)
    return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states))


def _run_fused(
    kernel: Callable[..., Any], x: Tensor, weights: tuple[Tensor, Tensor, Tensor | None], states: Sequence[Tensor],
    order: Sequence[int], how: Settings,
) -> tuple[Tensor, Sequence[Tensor]]:  # fmt: skip
    """By torch's kernel, whose gates come in another ``order``."""
    backwards = how.direction == "reverse"
    x = x.flip(0) if backwards else x
    w, r, bias = (None if one is None else _reordered(one, order) for one in weights)
    assert w is not None
    assert r is not None
    parameters: list[Tensor] = []
    for direction in range(how.directions):
        parameters += [w[direction], r[direction]]
        if bias is not None:
            parameters += list(bias[direction].chunk(2))
    first = states[0].contiguous() if len(states) == 1 else [state.contiguous() for state in states]
    y, *last = kernel(x, first, parameters, bias is not None, 1, 0.0, False, how.directions == 2, False)
    y = y.reshape(*y.shape[:2], how.directions, -1).transpose(1, 2)  # [T, D, N, H]
    return y.flip(0) if backwards else y, last


def _reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    """Gates along axis 1 in another order; a bias holds two sets of them."""
    gates = len(order)
    sets = 2 if weight.ndim == 2 else 1
    parts = weight.chunk(gates * sets, 1)
    return torch.cat([parts[gates * number + place] for number in range(sets) for place in order], 1)


def _run_steps(
    x: Tensor, weights: tuple[Tensor, Tensor, Tensor | None], states: Sequence[Tensor],
    extras: tuple[Tensor | None, Tensor | None], how: Settings, defaults: Sequence[str],
) -> tuple[Tensor, Sequence[Tensor]]:  # fmt: skip
    """Step by step, each direction by itself."""
    (w, r, bias), (lengths, peepholes) = weights, extras
    functions = _functions(how, defaults)
    each, gates = len(defaults), w.shape[1]
    cell = {4: _lstm_cell, 3: _gru_cell, 1: _rnn_cell}[gates // r.shape[-1]]
    runs = []
    for direction in range(how.directions):
        bias_w, bias_r = (w.new_zeros(gates), w.new_zeros(gates)) if bias is None else bias[direction].chunk(2)
        own = Weights(
            w=w[direction],
            r=r[direction],
            bias_w=bias_w,
            bias_r=bias_r,
            peepholes=None if peepholes is None else peepholes[direction],
            functions=tuple(functions[direction * each : (direction + 1) * each]),
        )
        first = tuple(state[direction] for state in states)
        step = functools.partial(cell, own=own, how=how)
        backwards = direction == 1 or how.direction == "reverse"
        runs.append(_run_direction(x, first, lengths, step, backwards=backwards))
    y = torch.stack([run[0] for run in runs], 1)
    return y, [torch.stack([run[1][index] for run in runs]) for index in range(len(states))]


def _run_direction(
    x: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None, cell: Step, *, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All steps of one direction; a sequence that has ended keeps its state and gives zeros."""
    if backwards:
        x = x.flip(0) if lengths is None else reverse_sequence(x, lengths.long())
    made = []
    for number, step in enumerate(x):
        new = cell(step, states)
        if lengths is None:
            states = new
            made.append(new[0])
            continue
        runs = (number < lengths)[:, None]
        states = tuple(torch.where(runs, after, before) for after, before in zip(new, states, strict=True))
        made.append(torch.where(runs, new[0], torch.zeros_like(new[0])))
    y = torch.stack(made) if made else x.new_zeros(0, *states[0].shape)
    if backwards:
        y = y.flip(0) if lengths is None else reverse_sequence(y, lengths.long())
    return y, states


def _functions(how: Settings, defaults: Sequence[str]) -> list[Callable[[Tensor], Tensor]]:
    """The activations in order, with their alphas and betas, behind the clipping.

    Raises:
        ModelError: an activation is unknown.
    """
    names = [name.lower() for name in how.activations] or list(defaults) * how.directions
    alphas, betas = list(how.activation_alpha), list(how.activation_beta)
    with_alpha = {"affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu"}
    with_beta = {"affine", "hardsigmoid", "scaledtanh"}
    found = []
    for name in names:
        if name not in ACTIVATIONS:
            raise ModelError(f"the activation {name!r} is not differentiated")
        alpha = alphas.pop(0) if alphas and name in with_alpha else None
        beta = betas.pop(0) if betas and name in with_beta else None
        found.append(_activation(name, alpha, beta, how.clip))
    return found


def _activation(name: str, alpha: float | None, beta: float | None, clip: float | None) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return ACTIVATIONS[name](x.clamp(-clip, clip) if clip else x, alpha, beta)

    return apply


def _lstm_cell(x: Tensor, states: tuple[Tensor, ...], *, own: Weights, how: Settings) -> tuple[Tensor, ...]:
    h, c = states
    f, g, last = own.functions
    i, o, forget, new = F.linear(x, own.w, own.bias_w).add(F.linear(h, own.r, own.bias_r)).chunk(4, -1)
    p_i, p_o, p_f = (0, 0, 0) if own.peepholes is None else own.peepholes.chunk(3)
    i = f(i + p_i * c)
    forget = 1 - i if how.input_forget else f(forget + p_f * c)
    c = forget * c + i * g(new)
    return f(o + p_o * c) * last(c), c


def _gru_cell(x: Tensor, states: tuple[Tensor, ...], *, own: Weights, how: Settings) -> tuple[Tensor, ...]:
    (h,) = states
    f, g = own.functions
    z_x, r_x, n_x = F.linear(x, own.w, own.bias_w).chunk(3, -1)
    w_z, w_r, w_n = own.r.chunk(3)
    b_z, b_r, b_n = own.bias_r.chunk(3)
    z, reset = f(z_x + F.linear(h, w_z, b_z)), f(r_x + F.linear(h, w_r, b_r))
    kept = reset * F.linear(h, w_n, b_n) if how.linear_before_reset else F.linear(reset * h, w_n, b_n)
    return ((1 - z) * g(n_x + kept) + z * h,)


def _rnn_cell(x: Tensor, states: tuple[Tensor, ...], *, own: Weights, how: Settings) -> tuple[Tensor, ...]:
    (h,) = states
    return (own.functions[0](F.linear(x, own.w, own.bias_w) + F.linear(h, own.r, own.bias_r)),)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
