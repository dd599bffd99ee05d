"""Sensitivities of units against gradients worked out by hand, and against the matrix that they estimate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.errors import DataError, ModelError
from alula.graph.channels import find_couplings
from alula.graph.editing import Editor
from alula.graph.gradients import RandomProjection, SensitivityMeter, unit_sensitivities
from alula.graph.statistics import Collector, GradientRequest, collect
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import FoldBatchNorm
from alula.testing.models import convolution_network, dense_network, model_from_text, random_feeds

TWO_LAYERS = "net (float[n, 3] x) => (float[n, 2] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) }"


def weighted_sum(outputs, labels):
    return (outputs * torch.from_numpy(labels)).sum()


def two_layers(seed=0):
    random = np.random.default_rng(seed)
    weights = {"w": random.standard_normal((3, 5)), "v": random.standard_normal((5, 2))}
    return model_from_text(TWO_LAYERS, {name: array.astype(np.float32) for name, array in weights.items()})


def by_hand(model, x, r):
    """Gradients of sum r . y by w, for y = relu(x w) v: [3, 5]."""
    w, v = (model.weight(name).astype(np.float64) for name in ("w", "v"))
    return x.T @ ((r @ v.T) * (x @ w > 0))


def test_both_orders_against_gradients_by_hand():
    model = two_layers()
    (coupling,) = find_couplings(model)
    random = np.random.default_rng(1)
    batches = [(random.standard_normal((n, 3)), random.standard_normal((n, 2))) for n in (1, 4, 2)]
    batches = [(x.astype(np.float32), r.astype(np.float32)) for x, r in batches]
    products = [model.weight("w") * by_hand(model, x, r) for x, r in batches]  # [3, 5] each
    first = np.mean([product.sum(0) ** 2 for product in products], axis=0)
    second = np.mean([0.5 * (product**2).sum(0) for product in products], axis=0)
    found = unit_sensitivities(model, [coupling], [({"x": x}, r) for x, r in batches], weighted_sum)[coupling.name]
    np.testing.assert_allclose(found.first_order, first, rtol=1e-4)
    np.testing.assert_allclose(found.second_order, second, rtol=1e-4)


def test_a_unit_scaled_by_its_weights_bias_or_normalisation_costs_the_gradient_by_it_times_itself():
    """Where a unit becomes h s, the first order is the derivative by s at 1: the sum over its places of dL/dh h."""
    random = np.random.default_rng(4)
    text = (
        "net (float[n, 2, 4, 4] x) => (float[n, 3, 4, 4] y) { h = Conv (x, w) b = BatchNormalization (h, g, s, m, u)"
        "r = Relu (b) k = Conv (r, v, c) t = Relu (k) y = Conv (t, o) }"
    )
    shapes = {"w": (5, 2, 1, 1), "g": 5, "s": 5, "m": 5, "u": 5, "v": (6, 5, 1, 1), "c": 6, "o": (3, 6, 1, 1)}
    weights = {name: np.abs(random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    weights |= {name: random.standard_normal(shapes[name]).astype(np.float32) for name in ("w", "v", "o", "s", "m")}
    model = model_from_text(text, weights)
    first, second = find_couplings(model)
    x = random.standard_normal((3, 2, 4, 4)).astype(np.float32)
    r = random.standard_normal((3, 3, 4, 4)).astype(np.float32)
    found = unit_sensitivities(model, [first, second], [({"x": x}, r)], weighted_sum)
    scales = [
        torch.ones(5, dtype=torch.float64, requires_grad=True),
        torch.ones(6, dtype=torch.float64, requires_grad=True),
    ]
    held = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    h = torch.einsum("nihw, oi -> nohw", torch.from_numpy(x).double(), held["w"][:, :, 0, 0])
    b = (h - held["m"][:, None, None]) / (held["u"][:, None, None] + 1e-5).sqrt()
    b = (b * held["g"][:, None, None] + held["s"][:, None, None]) * scales[0][:, None, None]
    k = torch.einsum("nihw, oi -> nohw", b.relu(), held["v"][:, :, 0, 0]) + held["c"][:, None, None]
    y = torch.einsum("nihw, oi -> nohw", (k * scales[1][:, None, None]).relu(), held["o"][:, :, 0, 0])
    gradients = torch.autograd.grad((y * torch.from_numpy(r)).sum(), scales)
    for coupling, gradient in zip((first, second), gradients, strict=True):
        np.testing.assert_allclose(found[coupling.name].first_order, gradient.numpy() ** 2, rtol=1e-3)


def test_without_labels_squares_of_gradients_are_the_diagonal_of_gauss_newton():
    model = two_layers()
    (coupling,) = find_couplings(model)
    x = np.random.default_rng(2).standard_normal((3, 3)).astype(np.float32)
    meter = SensitivityMeter(model, [coupling], RandomProjection())
    for _ in range(3000):
        meter.add({"x": x})
    diagonal = np.zeros((3, 5))
    for row in range(3):
        for output in range(2):
            unit = np.zeros((3, 2))
            unit[row, output] = 1
            diagonal += by_hand(model, x, unit) ** 2
    expected = 0.5 * (diagonal * model.weight("w").astype(np.float64) ** 2).sum(0)
    np.testing.assert_allclose(meter.sensitivities()[coupling.name].second_order, expected, rtol=0.12)


def test_a_request_finds_every_coupling_the_same_each_time():
    model = convolution_network()
    feeds = [random_feeds(model, seed=seed) for seed in range(3)]
    first, second = (collect(model, feeds, [GradientRequest()]) for _ in range(2))
    for coupling in find_couplings(model):
        one, other = first.sensitivities(coupling.name), second.sensitivities(coupling.name)
        assert one.first_order.shape == one.second_order.shape == (coupling.size,)
        assert (one.second_order > 0).any()
        np.testing.assert_array_equal(one.first_order, other.first_order)
    with pytest.raises(ModelError, match="gradients of the units of 'nowhere'"):
        first.sensitivities("nowhere")


def test_folding_a_batch_normalisation_changes_nothing():
    model = convolution_network()
    folded = apply_recipe(model, Recipe((Step(FoldBatchNorm()),)))
    feeds = [random_feeds(model)]
    before, after = (collect(one, feeds, [GradientRequest()]) for one in (model, folded))
    for coupling in find_couplings(model):
        wanted, got = before.sensitivities(coupling.name), after.sensitivities(coupling.name)
        np.testing.assert_allclose(got.first_order, wanted.first_order, rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(got.second_order, wanted.second_order, rtol=1e-2, atol=1e-6)


def test_a_unit_that_nothing_reads_does_not_matter():
    model = two_layers()
    editor = Editor(model.edit())
    editor.replace_constant("v", model.weight("v") * (np.arange(5) != 3)[:, None].astype(np.float32))
    found = collect(model.edited(editor.model), [random_feeds(model)], [GradientRequest()])
    seen = found.sensitivities(find_couplings(model)[0].name)
    assert seen.first_order[3] == seen.second_order[3] == 0
    assert (np.delete(seen.second_order, 3) >= 0).all()
    assert seen.second_order.sum() > 0


def test_an_operator_without_gradient_is_named():
    text = """net (float[n, 4] x, bool flag) => (float[n, 4] y) { a = MatMul (x, w) y = If (flag)
        <then_branch = yes () => (float[n, 4] p) { p = Tanh (a) },
         else_branch = no () => (float[n, 4] q) { q = Neg (a) }>
    }"""
    model = model_from_text(text, {"w": np.ones((4, 4), np.float32)})
    with pytest.raises(ModelError, match="gradients: If 'If_0'"):
        Collector(model, [GradientRequest()])


def test_no_data_labels_that_break_the_loss_and_poison():
    model = dense_network()
    couplings = find_couplings(model)
    feeds = random_feeds(model)
    with pytest.raises(DataError, match="at least one batch"):
        unit_sensitivities(model, couplings, [], weighted_sum)
    with pytest.raises(DataError, match="one finite number"):
        unit_sensitivities(model, couplings, [(feeds, None)], lambda outputs, _: outputs.sum() * torch.inf)
    with pytest.raises(DataError, match="one finite number"):
        unit_sensitivities(model, couplings, [(feeds, None)], lambda outputs, _: outputs)
    with pytest.raises(DataError, match="gradient of the loss by"):
        unit_sensitivities(model, couplings, [(feeds, None)], lambda outputs, _: (outputs * 0).abs().sum().sqrt())
    with pytest.raises(DataError, match="features"):
        unit_sensitivities(model, couplings, [({}, None)], weighted_sum)


def test_outputs_of_whole_numbers_have_no_gradient():
    with pytest.raises(ModelError, match="floating-point"):
        RandomProjection()(torch.ones(3, dtype=torch.int64))
