"""The lift: the module computes what the graph computes, trains as the module it came from, and goes back."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from alula.errors import ModelError
from alula.graph.export import as_model
from alula.graph.running import Runner
from alula.graph.trainable import restored, trainable
from alula.quantization import quantize
from alula.techniques import Quantize, QuantizeWeights
from alula.testing.models import model_from_text


class Network(nn.Module):
    """A bit of everything that carries weights in a small image network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.blocks(x).mean((2, 3)))


@pytest.fixture(scope="module")
def eager() -> nn.Module:
    torch.manual_seed(0)
    network = Network()
    nn.init.normal_(network.norm.running_mean)
    nn.init.uniform_(network.norm.running_var, 0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def model(eager):
    return as_model(eager, torch.randn(2, 3, 12, 12))


@pytest.fixture
def x():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_the_lift_computes_what_the_graph_computes(model, eager, x):
    module = trainable(model).eval()
    expected = Runner(model)({model.inputs[0].name: x.numpy()})
    torch.testing.assert_close(module(x), torch.from_numpy(next(iter(expected.values()))), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(x), eager(x), rtol=1e-4, atol=1e-5)


def test_parameters_and_buffers_carry_the_names_of_the_module_it_came_from(model, eager):
    module = trainable(model)
    assert dict(module.named_parameters()).keys() == dict(eager.named_parameters()).keys()
    statistics = {name for name, buffer in eager.named_buffers() if buffer.is_floating_point()}
    assert {name for name, buffer in module.named_buffers() if buffer.numel() > 1} == statistics


def test_it_trains_step_by_step_as_the_module_it_came_from(model, eager, x):
    twin, module = copy.deepcopy(eager).train(), trainable(model).train()
    assert module.norm.running_mean.data_ptr() != twin.norm.running_mean.data_ptr()
    y = torch.tensor([0, 1, 2, 3])
    for network in (twin, module):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimiser.step()
    state = module.state_dict()
    for name, tensor in twin.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    back = restored(module)
    expected = module.eval()(x).detach()
    found = Runner(back)({back.inputs[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(next(iter(found.values()))), expected, rtol=1e-4, atol=1e-5)


def test_untrained_it_goes_back_as_the_same_graph_and_shares_its_weights(model):
    back = restored(trainable(model))
    assert back.fingerprint == model.fingerprint
    for name, value in model.graph.initializers.items():
        assert back.graph.initializers[name].const_value is value.const_value
    assert model.fingerprint == back.fingerprint


def test_the_graph_does_not_change_when_its_lift_trains(model, x):
    before, module = model.fingerprint, trainable(model).train()
    module(x).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert model.fingerprint == before
    assert restored(module).fingerprint != before


@pytest.mark.parametrize("technique", [Quantize(), Quantize(weight_bits=4), QuantizeWeights(bits=4, block=4)])
def test_quantized_weights_are_float_parameters_and_go_back_as_the_same_codes(model, x, technique):
    quantized = quantize(model, x.numpy(), technique=technique)
    module = trainable(quantized).eval()
    expected = Runner(quantized, optimise=False)({model.inputs[0].name: x.numpy()})
    torch.testing.assert_close(module(x), torch.from_numpy(next(iter(expected.values()))), rtol=1e-3, atol=2e-3)
    assert restored(module).fingerprint == quantized.fingerprint
    module(x).square().sum().backward()
    gradient = module.get_parameter("blocks.2.weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        module.get_parameter("blocks.2.weight").mul_(0.5)
    back = restored(module)
    found = Runner(back, optimise=False)({model.inputs[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(next(iter(found.values()))), module(x).detach(), rtol=1e-3, atol=2e-3)


def test_it_is_copied_pickled_and_saved_like_any_module(model, x):
    module = trainable(model).eval()
    expected = module(x)
    torch.testing.assert_close(copy.deepcopy(module)(x), expected)
    again = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(again(x), expected)
    assert restored(again).fingerprint == model.fingerprint
    other = trainable(model).eval()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(load(save(module.state_dict())))
    torch.testing.assert_close(other(x), expected)
    torch.save(module.state_dict(), io.BytesIO())


def test_it_compiles_whole(model, x):
    module = trainable(model).train()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    assert module.get_parameter("stem.weight").grad is not None
    assert restored(compiled).fingerprint != model.fingerprint, "running statistics moved"


def test_it_runs_in_data_parallel(model, x, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = nn.parallel.DistributedDataParallel(trainable(model).train())
        module(x).sum().backward()
        assert restored(module).fingerprint != model.fingerprint
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(nn.DataParallel(trainable(model).eval())(x), trainable(model).eval()(x))


def test_lengths_are_computed_on_the_host():
    text = """n (float[b, t, 6] x) => (float[b, t, 2, 3] y, float[b, k] z)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[2] heads = {2, 3}, int64[1] rest = {-1}, int64 first = {0}> {
        s = Shape (x)
        b = Gather (s, zero)
        t = Slice (s, one, two)
        wanted = Concat <axis = 0> (b, t, heads)
        y = Reshape (x, wanted)
        n = Gather (s, first)
        m = Unsqueeze (n, zero)
        flat = Concat <axis = 0> (m, rest)
        z = Reshape (x, flat)
    }"""
    model = model_from_text(text, {"two": np.array([2], np.int64)})
    module = trainable(model)
    y, z = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)(torch.zeros(5, 4, 6))
    assert (y.shape, z.shape) == ((5, 4, 2, 3), (5, 24))


def test_names_that_a_module_cannot_hold_are_marked_and_go_back():
    weights = {
        name: np.ones(3, np.float32) for name in ("a", "a.b", "forward", "training", "..", "/layer 1/w", "_mode")
    }
    sums = " ".join(f'"s{index + 1}" = Add ("s{index}", "{name}")' for index, name in enumerate(weights))
    model = model_from_text(f'n (float[3] "s0") => (float[3] "s{len(weights)}") {{ {sums} }}', weights)
    module = trainable(model)
    torch.testing.assert_close(module(torch.zeros(3)), torch.full((3,), 7.0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    back = restored(module)
    assert all((back.weight(name) == 2).all() for name in weights)


def test_numbers_and_whole_numbers_are_not_trained():
    model = model_from_text("n (float[3] x) => (float[3] y) <float half = {0.5}> { y = Mul (x, half) }")
    module = trainable(model)
    assert list(module.parameters()) == []
    torch.testing.assert_close(module(torch.ones(3)), torch.full((3,), 0.5))


def test_operators_without_gradient_are_named():
    model = model_from_text('n (float[3] x) => (float[3] y) { y = TfIdfVectorizer <mode = "TF"> (x) }')
    with pytest.raises(ModelError, match=r"TfIdfVectorizer '.*': the operator has no gradient"):
        trainable(model)


def test_weights_that_are_not_finite_are_refused_by_name(model):
    module = trainable(model)
    with torch.no_grad():
        module.get_parameter("head.weight")[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"head\.weight: holds NaN or infinity"):
        restored(module)


def test_a_module_that_was_not_lifted_is_refused(model, eager):
    with pytest.raises(ModelError, match="Network was not lifted from a graph"):
        restored(eager)
