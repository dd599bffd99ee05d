"""Attention and rotary positions.

Shapes: q [N, H, L, E], k [N, K, S, E], v [N, K, S, F], with K heads that each serve H / K of the queries'; or all
heads side by side along the last of three axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Settings:
    """ONNX's attributes of Attention."""

    is_causal: int = 0
    q_num_heads: int | None = None
    kv_num_heads: int | None = None
    scale: float | None = None
    softcap: float = 0.0
    softmax_precision: int | None = None
    qk_matmul_output_mode: int = 0
    left_window_size: int = -1
    right_window_size: int = -1


def attend(*inputs: Tensor | None, outputs: int = 1, **attributes: Any) -> tuple[Tensor, ...]:
    """Attention of q, k, v, mask, past keys, past values, lengths of keys: result, all keys and values, products."""
    q, k, v, mask, past_k, past_v, lengths = _complete(inputs)
    how = Settings(**attributes)
    flat = q.ndim == 3
    q, k, v = (
        _split_heads(x, heads) if flat else x
        for x, heads in ((q, how.q_num_heads), (k, how.kv_num_heads), (v, how.kv_num_heads))
    )
    before = 0 if past_k is None else past_k.shape[2]
    k, v = (x if past is None else torch.cat([past, x], 2) for x, past in ((k, past_k), (v, past_v)))
    present = (k, v)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in present)
    bias = _bias(q, k, mask, before, lengths, how)
    if outputs < 4 and not how.softcap:
        y = F.scaled_dot_product_attention(q, k, v, bias, scale=how.scale)
        y = y if bias is None else _without_unreachable(y, bias)
        products = y
    else:
        y, products = _spell_out(q, k, v, bias, how)
    y = y.transpose(1, 2).flatten(2) if flat else y
    return (y, *present, products)[:outputs]


def _complete(inputs: Sequence[Tensor | None]) -> list[Any]:
    return [*inputs, *[None] * (7 - len(inputs))]


def _split_heads(x: Tensor, heads: int | None) -> Tensor:  # [N, L, heads * E] -> [N, heads, L, E]
    assert heads is not None
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, before: int, lengths: Tensor | None, how: Settings
) -> Tensor | None:
    """What is added to the products: the mask, minus infinity where a query may not look; None for nothing."""
    rows, columns = q.shape[2], k.shape[2]
    bias = None
    if mask is not None:
        bias = mask if mask.dtype != torch.bool else _closed(~mask, q)
        if bias.shape[-1] < columns:
            bias = F.pad(bias, [0, columns - bias.shape[-1]], value=float("-inf"))
    places = torch.arange(columns, device=q.device)
    if how.is_causal or how.left_window_size >= 0 or how.right_window_size >= 0:
        offset = torch.tensor(before, device=q.device) if lengths is None else (lengths - rows).reshape(-1, 1, 1, 1)
        ahead = places - (torch.arange(rows, device=q.device)[:, None] + offset)  # how far a key lies after its query
        closed = torch.zeros_like(ahead, dtype=torch.bool)
        if how.is_causal:
            closed = closed | (ahead > 0)
        if how.left_window_size >= 0:
            closed = closed | (-ahead > how.left_window_size)
        if how.right_window_size >= 0:
            closed = closed | (ahead > how.right_window_size)
        bias = _closed(closed, q) if bias is None else bias + _closed(closed, q)
    if lengths is not None:
        beyond = _closed((places >= lengths[:, None])[:, None, None], q)  # [N, 1, 1, S]
        bias = beyond if bias is None else bias + beyond
    return bias


def _closed(places: Tensor, like: Tensor) -> Tensor:
    """Minus infinity where a query may not look, 0 elsewhere."""
    return torch.zeros_like(places, dtype=like.dtype).masked_fill(places, float("-inf"))


def _without_unreachable(y: Tensor, bias: Tensor) -> Tensor:
    """Zeros for queries that may look nowhere."""
    lost = torch.isneginf(bias).all(-1, keepdim=True)
    return torch.where(lost, torch.zeros_like(y), y)


def _spell_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, how: Settings) -> tuple[Tensor, Tensor]:
    """The result and the products, at the stage that is asked for."""
    root = math.sqrt(1 / math.sqrt(q.shape[-1]) if how.scale is None else how.scale)
    scores = (q * root) @ (k * root).transpose(-1, -2)
    capped = how.softcap * torch.tanh(scores / how.softcap) if how.softcap else scores
    masked = capped if bias is None else capped + bias
    lost = torch.isneginf(masked).all(-1, keepdim=True)  # filled first: a softmax of minus infinities has no gradient
    weights = torch.softmax(masked.masked_fill(lost, 0.0), -1).masked_fill(lost, 0.0)
    return weights @ v, (capped, capped, masked, weights)[how.qk_matmul_output_mode]


def rotate(
    x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None, *,
    interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Tensor:  # fmt: skip
    """RotaryEmbedding of x [N, H, L, E] or [N, L, H * E] (Su et al., 2021, "RoFormer", equation 34)."""
    flat = x.ndim == 3
    heads = x.reshape(*x.shape[:2], num_heads, -1) if flat else x.transpose(1, 2)  # [N, L, H, E]
    width = rotary_embedding_dim or heads.shape[-1]
    turning, still = heads[..., :width], heads[..., width:]
    cos, sin = (table if positions is None else table[positions] for table in (cosines, sines))
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)  # [N, L, 1, width / 2]
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([cos * first - sin * second, sin * first + cos * second], -1).flatten(-2)
    else:
        first, second = turning.chunk(2, -1)
        turned = torch.cat([cos * first - sin * second, sin * first + cos * second], -1)
    y = torch.cat([turned, still], -1)
    return y.reshape(x.shape) if flat else y.transpose(1, 2)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {"Attention": attend, "RotaryEmbedding": rotate}
