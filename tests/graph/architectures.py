"""Small networks of many kinds, with drawn weights: a module and an example input for each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, Tensor | tuple[Tensor, ...]]


class Applied(nn.Module):
    """Parts, and the function that runs them."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def image(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def classified(body: nn.Module, width: int) -> nn.Module:
    return Applied(lambda self, x: self.head(self.body(x).mean((2, 3))), body=body, head=nn.Linear(width, 5))


def residual(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    same = stride == 1 and inputs == outputs
    return Applied(
        lambda self, x: torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x)),
        a=conv(inputs, outputs, 3, stride),
        b=conv(outputs, outputs),
        skip=nn.Identity() if same else conv(inputs, outputs, 1, stride),
    )


def bottleneck(inputs: int, outputs: int, groups: int) -> nn.Module:
    return Applied(
        lambda self, x: torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))) + self.skip(x)),
        a=conv(inputs, outputs, 1),
        b=conv(outputs, outputs, 3, 1, groups),
        c=conv(outputs, outputs, 1),
        skip=conv(inputs, outputs, 1),
    )


def resnet() -> Built:
    return classified(nn.Sequential(conv(3, 8), nn.ReLU(), residual(8, 8), residual(8, 12, 2)), 12), image()


def regnet() -> Built:
    return classified(nn.Sequential(conv(3, 8), nn.ReLU(), bottleneck(8, 16, 4), bottleneck(16, 16, 4)), 16), image()


def vgg() -> Built:
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip
    return body, image()


def lenet() -> Built:
    body = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(1),
        nn.Linear(6 * 36, 16),
        nn.Tanh(),
        nn.Linear(16, 5),
    )
    return body, image()


def densenet() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(self.transition(x).mean((2, 3)))

    layers = nn.ModuleList([conv(8 + 4 * index, 4) for index in range(3)])
    return Applied(run, stem=conv(3, 8), layers=layers, transition=conv(20, 10, 1), head=nn.Linear(10, 5)), image()


def inception() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([self.one(x), self.three(torch.relu(self.reduce(x))), self.pooled(F.max_pool2d(x, 3, 1, 1))], 1)
        return self.head(torch.relu(x).mean((2, 3)))

    parts = {
        "stem": conv(3, 8),
        "one": conv(8, 4, 1),
        "reduce": conv(8, 4, 1),
        "three": conv(4, 6),
        "pooled": conv(8, 3, 1),
    }
    return Applied(run, **parts, head=nn.Linear(13, 5)), image()


def inverted(inputs: int, outputs: int, *, gate: bool, activation: nn.Module) -> nn.Module:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        y = self.act(self.depthwise(self.act(self.expand(x))))
        if gate:
            y = y * torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        y = self.project(y)
        return x + y if inputs == outputs else y

    wide = 3 * inputs
    parts = {
        "expand": conv(inputs, wide, 1),
        "depthwise": conv(wide, wide, 3, 1, wide),
        "project": conv(wide, outputs, 1),
    }
    gates = {"down": nn.Conv2d(wide, 4, 1), "up": nn.Conv2d(4, wide, 1)} if gate else {}
    return Applied(run, **parts, **gates, act=activation)


def mobilenet_v2() -> Built:
    blocks = [inverted(8, 8, gate=False, activation=nn.ReLU6()), inverted(8, 12, gate=False, activation=nn.ReLU6())]
    return classified(nn.Sequential(conv(3, 8), nn.ReLU6(), *blocks, conv(12, 16, 1), nn.ReLU6()), 16), image()


def mobilenet_v3() -> Built:
    blocks = [inverted(8, 8, gate=True, activation=nn.Hardswish()), inverted(8, 12, gate=True, activation=nn.ReLU())]
    return classified(nn.Sequential(conv(3, 8), nn.Hardswish(), *blocks), 12), image()


def efficientnet() -> Built:
    blocks = [inverted(8, 8, gate=True, activation=nn.SiLU()), inverted(8, 12, gate=True, activation=nn.SiLU())]
    return classified(nn.Sequential(conv(3, 8), nn.SiLU(), *blocks), 12), image()


def mobilenet_v1() -> Built:
    body = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, 3, 1, 8), nn.ReLU(), conv(8, 16, 1), nn.ReLU())
    return classified(body, 16), image()


def unet() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(F.max_pool2d(first, 2)))
        third = torch.relu(self.third(F.max_pool2d(second, 2)))
        up = torch.relu(self.merge(torch.cat([self.up(third), second], 1)))
        up = F.interpolate(up, scale_factor=2, mode="nearest")
        return self.out(torch.relu(self.last(torch.cat([up, first], 1))))

    parts = {
        "first": conv(3, 6), "second": conv(6, 8), "third": conv(8, 10), "up": nn.ConvTranspose2d(10, 7, 2, 2),
        "merge": conv(15, 8), "last": conv(14, 6), "out": nn.Conv2d(6, 2, 1),
    }  # fmt: skip
    return Applied(run, **parts), image()


def pyramid() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        low = torch.relu(self.low(x))
        high = torch.relu(self.high(low))
        top = self.lateral_high(high)
        merged = self.lateral_low(low) + F.interpolate(top, scale_factor=2, mode="bilinear", align_corners=False)
        scores = [self.detect(torch.relu(self.smooth(level))).flatten(2) for level in (merged, top)]
        return torch.cat(scores, 2)

    parts = {
        "low": conv(3, 8, 3, 2), "high": conv(8, 12, 3, 2), "lateral_low": nn.Conv2d(8, 6, 1),
        "lateral_high": nn.Conv2d(12, 6, 1), "smooth": nn.Conv2d(6, 6, 3, padding=1), "detect": nn.Conv2d(6, 4, 1),
    }  # fmt: skip
    return Applied(run, **parts), image()


class Attention(nn.Module):
    """Several heads over a sequence [n, t, width]; fewer heads of keys and values where asked."""

    def __init__(self, width: int, heads: int, key_heads: int | None = None, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.key_heads, self.causal = heads, key_heads or heads, causal
        self.size = width // heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, self.key_heads * self.size)
        self.v = nn.Linear(width, self.key_heads * self.size)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        source = x if memory is None else memory
        n, t, width = x.shape
        q = self.q(x).view(n, t, self.heads, self.size).transpose(1, 2)
        k = self.k(source).view(n, source.shape[1], self.key_heads, self.size).transpose(1, 2)
        v = self.v(source).view(n, source.shape[1], self.key_heads, self.size).transpose(1, 2)
        if self.key_heads != self.heads:
            k, v = (one.repeat_interleave(self.heads // self.key_heads, 1) for one in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        if self.causal:
            scores = scores.masked_fill(torch.triu(torch.ones(t, t, dtype=torch.bool), 1), -1e4)
        mixed = torch.softmax(scores, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, width))


class Layer(nn.Module):
    """A transformer layer; norms before or after, an activation in the middle."""

    def __init__(self, width: int = 16, heads: int = 4, *, before: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.attention, self.before = Attention(width, heads, causal=causal), before
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.norms[0](x))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))
        x = self.norms[0](x + self.attention(x))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


def transformer() -> Built:
    return nn.Sequential(Layer(), Layer(), nn.Linear(16, 5)), torch.randn(2, 6, 16)


def bert() -> Built:
    run = lambda self, tokens: self.head(self.layers(self.table(tokens) + self.places)[:, 0])  # noqa: E731
    module = Applied(run, table=nn.Embedding(30, 16), layers=nn.Sequential(Layer(), Layer()), head=nn.Linear(16, 3))
    module.places = nn.Parameter(torch.randn(6, 16))
    return module, torch.randint(0, 30, (2, 6))


def gpt() -> Built:
    layers = nn.Sequential(Layer(before=True, causal=True), Layer(before=True, causal=True))
    run = lambda self, tokens: self.head(self.norm(self.layers(self.table(tokens))))  # noqa: E731
    parts = {"table": nn.Embedding(30, 16), "layers": layers, "norm": nn.LayerNorm(16), "head": nn.Linear(16, 30)}
    return Applied(run, **parts), torch.randint(0, 30, (2, 6))


def vit() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.layers(patches + self.places).mean(1))

    module = Applied(run, patch=nn.Conv2d(3, 16, 4, 4), layers=nn.Sequential(Layer(before=True)), head=nn.Linear(16, 5))
    module.places = nn.Parameter(torch.randn(16, 16))
    return module, image()


def llama() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_a(x))
        y = self.norm_b(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))

    parts = {
        "attention": Attention(16, 4, 2, causal=True), "norm_a": nn.RMSNorm(16), "norm_b": nn.RMSNorm(16),
        "gate": nn.Linear(16, 20, bias=False), "up": nn.Linear(16, 20, bias=False),
        "down": nn.Linear(20, 16, bias=False), "head": nn.Linear(16, 7, bias=False),
    }  # fmt: skip
    return Applied(run, **parts), torch.randn(2, 6, 16)


def whisper() -> Built:
    def run(self: nn.Module, sound: Tensor, text: Tensor) -> Tensor:
        memory = self.encoder(F.gelu(self.second(F.gelu(self.first(sound)))).transpose(1, 2))
        x = self.decoder(self.table(text))
        x = x + self.cross(self.norm(x), memory)
        return self.head(x)

    parts = {
        "first": nn.Conv1d(8, 12, 3, padding=1), "second": nn.Conv1d(12, 16, 3, 2, 1), "encoder": Layer(before=True),
        "table": nn.Embedding(20, 16), "decoder": Layer(before=True, causal=True), "norm": nn.LayerNorm(16),
        "cross": Attention(16, 4), "head": nn.Linear(16, 20),
    }  # fmt: skip
    return Applied(run, **parts), (torch.randn(2, 8, 12), torch.randint(0, 20, (2, 5)))


def convnext() -> Built:
    def block(self: nn.Module, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)

    parts = {
        "depthwise": nn.Conv2d(8, 8, 7, padding=3, groups=8), "norm": nn.LayerNorm(8), "up": nn.Linear(8, 20),
        "down": nn.Linear(20, 8),
    }  # fmt: skip
    module = Applied(block, **parts)
    module.scale = nn.Parameter(torch.rand(8))
    return classified(nn.Sequential(nn.Conv2d(3, 8, 4, 4), module), 8), image()


def recurrent(kind: type[nn.LSTM | nn.GRU], *, both: bool) -> Built:
    run = lambda self, x: self.head(torch.relu(self.second(self.first(x)[0])[0]))  # noqa: E731
    width = 12 if both else 6
    first, second = kind(4, 6, bidirectional=both), kind(width, 5)
    return Applied(run, first=first, second=second, head=nn.Linear(5, 3)), torch.randn(7, 2, 4)


def two_tower() -> Built:
    def run(self: nn.Module, user: Tensor, item: Tensor) -> Tensor:
        left = self.user(self.users(user))
        right = self.item(self.items(item))
        return (left * right).sum(-1)

    tower = lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6))  # noqa: E731
    parts = {"users": nn.Embedding(20, 8), "items": nn.Embedding(30, 8), "user": tower(), "item": tower()}
    return Applied(run, **parts), (torch.randint(0, 20, (2,)), torch.randint(0, 30, (2,)))


def dlrm() -> Built:
    def run(self: nn.Module, dense: Tensor, sparse: Tensor) -> Tensor:
        features = torch.stack([self.bottom(dense), self.a(sparse[:, 0]), self.b(sparse[:, 1])], 1)
        pairs = (features @ features.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([pairs, features[:, 0]], 1))

    parts = {
        "bottom": nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 6)), "a": nn.Embedding(9, 6),
        "b": nn.Embedding(7, 6), "top": nn.Sequential(nn.Linear(15, 8), nn.ReLU(), nn.Linear(8, 1)),
    }  # fmt: skip
    return Applied(run, **parts), (torch.randn(2, 5), torch.randint(0, 7, (2, 2)))


def pointnet() -> Built:
    body = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 12, 1), nn.ReLU())
    run = lambda self, x: self.head(self.body(x).amax(2))  # noqa: E731
    head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    return Applied(run, body=body, head=head), torch.randn(2, 3, 10)


def shufflenet() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([left, torch.relu(self.branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))

    branch = nn.Sequential(conv(6, 6, 1), nn.ReLU(), conv(6, 6, 3, 1, 6), conv(6, 6, 1))
    return Applied(run, stem=conv(3, 12), branch=branch, last=conv(12, 10, 1), head=nn.Linear(10, 5)), image()


def conformer() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff(x)
        x = x + self.attention(self.norm(x))
        y = F.glu(self.point(x.transpose(1, 2)), 1)
        y = self.back(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        return self.head(x + y)

    parts = {
        "ff": nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 20), nn.SiLU(), nn.Linear(20, 8)),
        "attention": Attention(8, 2), "norm": nn.LayerNorm(8), "point": nn.Conv1d(8, 16, 1),
        "depth": nn.Conv1d(8, 8, 3, padding=1, groups=8), "batch": nn.BatchNorm1d(8), "back": nn.Conv1d(8, 8, 1),
        "head": nn.Linear(8, 5),
    }  # fmt: skip
    return Applied(run, **parts), torch.randn(2, 6, 8)


class Split(nn.Module):
    """Features that are cut in two, one half through more convolutions, all parts together again (YOLO's C2f)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.enter, self.inner = conv(inputs, 2 * hidden, 1), conv(hidden, hidden)
        self.leave = conv(3 * hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.silu(self.enter(x)).chunk(2, 1)
        return F.silu(self.leave(torch.cat([left, right, right + F.silu(self.inner(right))], 1)))


def yolo() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        low = self.low(F.silu(self.stem(x)))
        high = self.high(F.silu(self.down(low)))
        pools = [high]
        for _ in range(2):
            pools.append(F.max_pool2d(pools[-1], 3, 1, 1))
        high = F.silu(self.pooled(torch.cat(pools, 1)))
        low = self.merge(torch.cat([F.interpolate(high, scale_factor=2, mode="nearest"), low], 1))
        return torch.cat([self.near(low).flatten(2), self.far(high).flatten(2)], 2)

    parts = {
        "stem": conv(3, 6, 3, 2), "low": Split(6, 4, 8), "down": conv(8, 10, 3, 2), "high": Split(10, 4, 10),
        "pooled": conv(30, 8, 1), "merge": Split(16, 4, 6), "near": nn.Conv2d(6, 4, 1), "far": nn.Conv2d(8, 4, 1),
    }  # fmt: skip
    return Applied(run, **parts), image()


def swin() -> Built:
    """One layer of attention in windows of 4 by 4, packed queries, keys and values, shifted; patches merged after."""

    def attend(self: nn.Module, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        windows = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        q, k, v = self.packed(windows).reshape(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q * (c // 2) ** -0.5 @ k.transpose(-1, -2) + self.places
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(-1, 16, c)
        return self.out(mixed).view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)

    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        x = x + attend(self, torch.roll(self.norm(x), (-2, -2), (1, 2)))
        x = x + self.down(F.gelu(self.up(x)))
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.merge(torch.cat(corners, -1)).mean((1, 2)))

    parts = {
        "patch": nn.Conv2d(3, 12, 2, 2), "norm": nn.LayerNorm(12), "packed": nn.Linear(12, 36),
        "out": nn.Linear(12, 12), "up": nn.Linear(12, 20), "down": nn.Linear(20, 12), "merge": nn.Linear(48, 10),
        "head": nn.Linear(10, 5),
    }  # fmt: skip
    module = Applied(run, **parts)
    module.places = nn.Parameter(torch.randn(2, 16, 16))
    return module, image()


def mpnet() -> Built:
    """Positions as a bias of each head, by the distance of two tokens in buckets."""

    def run(self: nn.Module, tokens: Tensor) -> Tensor:
        x = self.norm(self.table(tokens))
        n, t, width = x.shape
        steps = torch.arange(t)
        bias = self.distances((steps[:, None] - steps[None]).clamp(-3, 3) + 3).permute(2, 0, 1)
        q, k, v = (part(x).view(n, t, 4, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2 + bias, -1) @ v
        x = self.after(x + self.out(mixed.transpose(1, 2).reshape(n, t, width)))
        return self.head(F.normalize(x.mean(1), dim=-1))

    parts = {"table": nn.Embedding(30, 16), "norm": nn.LayerNorm(16), "distances": nn.Embedding(7, 4)}
    parts |= {name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")}
    return Applied(run, **parts, after=nn.LayerNorm(16), head=nn.Linear(16, 5)), torch.randint(0, 30, (2, 6))


def encoder() -> Built:
    """PyTorch's own layer, with packed queries, keys and values."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(7, 16), stack, nn.Linear(16, 5)), torch.randn(2, 6, 7)


def silero() -> Built:
    """A spectrum by convolution, its size, convolutions over it, and a recurrent cell whose state goes in and out."""

    def run(self: nn.Module, sound: Tensor, state: Tensor) -> Tensor:
        spectrum = self.spectrum(sound[:, None])
        real, imaginary = spectrum.split([5, 5], 1)
        x = torch.relu(self.first(torch.sqrt(real * real + imaginary * imaginary + 1e-6)))
        x = torch.relu(self.second(x)).permute(2, 0, 1)
        hidden, _ = self.cell(x, (state[:1], state[1:]))
        return torch.sigmoid(self.head(torch.relu(hidden).permute(1, 2, 0)).mean(2))

    parts = {
        "spectrum": nn.Conv1d(1, 10, 8, 4, bias=False), "first": nn.Conv1d(5, 8, 3, 1, 1),
        "second": nn.Conv1d(8, 6, 3, 2, 1), "cell": nn.LSTM(6, 6), "head": nn.Conv1d(6, 1, 1),
    }  # fmt: skip
    return Applied(run, **parts), (torch.randn(2, 64), torch.randn(2, 2, 6))


def upsampler() -> Built:
    """Transposed convolutions in groups and one for each channel, then channels moved into space."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 2, 2, groups=12), nn.LeakyReLU(0.1), nn.Conv2d(12, 16, 3, padding=1),
        nn.PixelShuffle(2), nn.PReLU(4), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh(),
    )  # fmt: skip
    return body, image(8)


def mixer() -> Built:
    """Two matrices over tokens, two over features."""

    def run(self: nn.Module, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.mixed(F.gelu(self.tokens(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))

    parts = {
        "patch": nn.Conv2d(3, 8, 4, 4), "norm": nn.LayerNorm(8), "tokens": nn.Linear(16, 10),
        "mixed": nn.Linear(10, 16), "up": nn.Linear(8, 14), "down": nn.Linear(14, 8), "head": nn.Linear(8, 5),
    }  # fmt: skip
    return Applied(run, **parts), image()


def wavenet() -> Built:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0
        for gate, leave in zip(self.gates, self.leaves, strict=True):
            signal, switch = gate(x).chunk(2, 1)
            made = leave(torch.tanh(signal) * torch.sigmoid(switch))
            total = total + made[:, 8:]
            x = x + made[:, :8]
        return self.head(torch.relu(total))

    gates = nn.ModuleList([nn.Conv1d(8, 12, 3, padding=2**index, dilation=2**index) for index in range(2)])
    leaves = nn.ModuleList([nn.Conv1d(6, 13, 1) for _ in range(2)])
    return Applied(run, enter=nn.Conv1d(1, 8, 1), gates=gates, leaves=leaves, head=nn.Conv1d(5, 2, 1)), torch.randn(
        2, 1, 16
    )


def text_reader() -> Built:
    """Convolutions over a line of text, then a recurrent layer in both directions over its columns."""
    run = lambda self, x: self.head(self.cells(self.body(x).mean(2).permute(2, 0, 1))[0])  # noqa: E731
    body = nn.Sequential(conv(3, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 8), nn.ReLU())
    return Applied(run, body=body, cells=nn.GRU(8, 5, bidirectional=True), head=nn.Linear(10, 7)), image()


CONVOLUTIONAL: dict[str, Callable[[], Built]] = {
    "resnet": resnet, "regnet": regnet, "vgg": vgg, "lenet": lenet, "densenet": densenet, "inception": inception,
    "mobilenet v1": mobilenet_v1, "mobilenet v2": mobilenet_v2, "mobilenet v3": mobilenet_v3,
    "efficientnet": efficientnet, "shufflenet": shufflenet, "convnext": convnext, "u-net": unet, "pyramid": pyramid,
    "yolo": yolo, "upsampler": upsampler, "wavenet": wavenet, "pointnet": pointnet,
}  # fmt: skip
OTHERS: dict[str, Callable[[], Built]] = {
    "transformer": transformer, "bert": bert, "gpt": gpt, "vit": vit, "llama": llama, "whisper": whisper, "swin": swin,
    "mpnet": mpnet, "encoder": encoder, "mixer": mixer, "conformer": conformer,
    "lstm": lambda: recurrent(nn.LSTM, both=False), "bidirectional lstm": lambda: recurrent(nn.LSTM, both=True),
    "gru": lambda: recurrent(nn.GRU, both=False), "silero": silero, "text reader": text_reader,
    "two-tower": two_tower, "dlrm": dlrm,
}  # fmt: skip
ARCHITECTURES = {**CONVOLUTIONAL, **OTHERS}
TIME_FIRST = frozenset({"lstm", "bidirectional lstm", "gru", "silero"})  # the first axis of an input is no batch
