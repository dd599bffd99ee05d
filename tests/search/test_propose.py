from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from alula.errors import ModelError
from alula.graph.statistics import Statistics, collect
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.search.propose import Proposal, keep_apart, literal, propose
from alula.search.sensitivity import compressed_layers
from alula.targets.target import Traits
from alula.techniques import Float16, Float32, FoldBatchNorm, QuantizeDynamic, QuantizeWeights
from alula.testing import attention_network
from tests.oracles.networks import make_model
from tests.oracles.tasks import network

FLOAT = TensorProto.FLOAT


class Runtime:
    """A target that only says what it runs fast."""

    def __init__(self, name="onnxruntime", **changes):
        self.name = name
        known = {
            "activation_signed": False,
            "static_int8": frozenset({"Conv", "MatMul", "Gemm"}),
            "dynamic_int8": frozenset({"MatMul", "Gemm"}),
            "weight_only_bits": (8, 4),
            "float16_fast": False,
            "notes": ("Conv in dynamic int8 runs 4x slower than float",),
        }
        self._traits = Traits(**{**known, **changes})

    def traits(self):
        return self._traits


def convolutional(*, norm=True):
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1])]
    weights = {"k": rng.normal(size=(8, 3, 3, 3)).astype(np.float32)}
    if norm:
        nodes.append(helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"], name="norm"))
        weights |= {name: np.ones(8, np.float32) for name in "somv"}
    nodes += [
        helper.make_node("Relu", ["n" if norm else "c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "k2"], ["y"], name="conv2", pads=[1, 1, 1, 1]),
    ]
    weights["k2"] = rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
    return make_model(nodes, [("x", FLOAT, ["n", 3, 8, 8])], [("y", FLOAT, ["n", 8, 8, 8])], weights)


def recurrent():
    rng = np.random.default_rng(0)
    weights = {"W": rng.normal(size=(1, 64, 8)), "R": rng.normal(size=(1, 64, 16))}
    nodes = [helper.make_node("LSTM", ["x", "W", "R"], ["y"], name="lstm", hidden_size=16)]
    values = {name: value.astype(np.float32) for name, value in weights.items()}
    return make_model(nodes, [("x", FLOAT, [5, 1, 8])], [("y", FLOAT, [5, 1, 1, 16])], values)


def names(parts, objective="latency", target=None):
    proposals, notes = propose(parts, target or Runtime(), objective)
    return [proposal.name for proposal in proposals], notes


def techniques(proposal: Proposal):
    return [type(step.technique).__name__ for step in proposal.recipe.steps]


def test_convolutions_are_never_quantized_dynamically_and_it_is_said() -> None:
    for objective in ("latency", "size", "energy"):
        proposals, notes = propose({"model": convolutional()}, Runtime(), objective)
        assert all("QuantizeDynamic" not in techniques(proposal) for proposal in proposals)
        assert any("dynamic int8 on 2 layers; Conv in dynamic int8 runs 4x slower" in note.text for note in notes)


def test_batch_normalisation_is_folded_first_and_only_where_there_is_one() -> None:
    proposals, _ = propose({"model": convolutional()}, Runtime(), "size")
    assert all(isinstance(proposal.recipe.steps[0].technique, FoldBatchNorm) for proposal in proposals)
    proposals, _ = propose({"model": convolutional(norm=False)}, Runtime(), "size")
    assert all("FoldBatchNorm" not in techniques(proposal) for proposal in proposals)


def test_a_convolutional_network_gets_static_int8_with_every_range_method() -> None:
    found, _ = names({"model": convolutional()})
    assert found == [f"int8 static, {method} ranges" for method in ("min-max", "percentile", "mse", "entropy")]


def test_matrix_products_also_get_dynamic_int8_and_blocked_int4() -> None:
    found, _ = names({"model": network()})
    assert "int8 dynamic" in found
    assert "int4 weights" in found
    assert "int8 weights" not in found  # gains no speed


def test_for_size_weights_alone_and_half_precision_are_tried_too() -> None:
    found, _ = names({"model": network()}, "size")
    assert {"int8 weights", "int4 weights", "float16"} <= set(found)
    found, notes = names({"model": network()}, "latency")
    assert "float16" not in found
    assert any(note.place == "float16" for note in notes)


def test_a_runtime_without_dynamic_int8_gets_none() -> None:
    found, _ = names({"model": network()}, target=Runtime("openvino", dynamic_int8=frozenset()))
    assert not any("dynamic" in name for name in found)


def test_attention_is_tried_in_int8_where_the_runtime_gains_from_it() -> None:
    parts = {"model": attention_network()}
    kept, _ = names(parts)
    found, _ = names(parts, target=Runtime("openvino", static_products=True))
    assert "int8 static, smoothed" in kept
    assert set(found) - set(kept) == {"int8 static with attention, smoothed"}


def test_a_network_in_float16_is_computed_in_float32_first() -> None:
    half = apply_recipe(convolutional(), Recipe((Step(Float16(compute=True)),)), Statistics())
    proposals, _ = propose({"model": half}, Runtime(), "latency")
    assert {type(proposal.recipe.steps[0].technique) for proposal in proposals} == {Float32}


def test_a_network_of_convolutions_is_not_smoothed() -> None:
    found, _ = names({"model": convolutional()})
    assert "int8 static, mse ranges" in found
    assert "int8 static, smoothed" not in found


def test_weights_stay_within_the_safe_width_of_the_processor() -> None:
    proposals, _ = propose({"model": network()}, Runtime(weight_bits_safe=7), "latency")
    techniques = [step.technique for proposal in proposals for step in proposal.recipe.steps]
    assert {one.weight_bits for one in techniques if hasattr(one, "weight_bits")} == {7}


def test_a_recurrent_network_is_compressed_by_its_weights() -> None:
    found, notes = names({"model": recurrent()}, "size")
    assert found == ["int8 weights", "int4 weights", "float16"]
    assert any(note.place == "LSTM" and "static" in note.text for note in notes)
    assert names({"model": recurrent()}, "latency")[0] == ["int8 weights"]  # never nothing at all


@pytest.mark.parametrize("objective", ["latency", "size", "energy"])
def test_every_proposal_can_be_applied_to_every_part(objective) -> None:
    parts = {"eyes": convolutional(), "mind": network(), "ears": recurrent()}
    feeds = {
        "eyes": {"x": np.zeros((1, 3, 8, 8), np.float32)},
        "mind": {"x": np.ones((2, 32), np.float32)},
        "ears": {"x": np.ones((5, 1, 8), np.float32)},
    }
    proposals, _ = propose(parts, Runtime(), objective)
    assert len({proposal.name for proposal in proposals}) == len(proposals) > 3
    for proposal in proposals:
        assert Recipe.from_json(proposal.recipe.to_json()) == proposal.recipe
        for part, model in parts.items():
            statistics = collect(model, [feeds[part]], requests_of(proposal.recipe, model, part))
            apply_recipe(model, proposal.recipe, statistics, part).run(feeds[part])


def test_a_graph_without_layers_is_refused_by_name() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], name="add")]
    model = make_model(nodes, [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    with pytest.raises(ModelError, match=r"nothing to compress.*part 'head' holds 1 Add"):
        propose({"head": model}, Runtime(), "size")


def test_a_graph_with_its_layers_in_branches_is_refused_with_the_reason() -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"out_{name}"])],
            name,
            [],
            [helper.make_tensor_value_info(f"out_{name}", FLOAT, [2, 2])],
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [helper.make_node("If", ["c"], ["y"], name="if", **branches)]
    inputs = [("x", FLOAT, [2, 2]), ("c", TensorProto.BOOL, [])]
    model = make_model(nodes, inputs, [("y", FLOAT, [2, 2])], {"w": np.eye(2, dtype=np.float32)})
    with pytest.raises(ModelError, match=r"bodies of If and Loop are left as they are"):
        propose({"model": model}, Runtime(), "size")


def test_layers_kept_apart_stay_in_float_and_others_do_not() -> None:
    parts = {"a": network(), "b": network(1)}
    proposals, _ = propose(parts, Runtime(), "latency")
    recipe = keep_apart(proposals[0], parts, {"a": ["second"]})
    assert compressed_layers(parts["a"], recipe, "a") == ("first", "last")
    assert compressed_layers(parts["b"], recipe, "b") == ("first", "second", "last")


def test_layers_kept_apart_get_the_fallback() -> None:
    parts = {"model": network()}
    proposals, _ = propose(parts, Runtime(), "size")
    proposal = next(one for one in proposals if one.name == "int4 weights")
    recipe = keep_apart(proposal, parts, {"model": ["second"]})
    graph = apply_recipe(parts["model"], recipe, collect(parts["model"], [], []))
    kinds = {name: str(value.dtype) for name, value in graph.graph.initializers.items() if name.endswith(".codes")}
    assert kinds == {"w1.codes": "INT4", "w2.codes": "INT8"}


def test_keeping_every_layer_apart_leaves_an_empty_step_out() -> None:
    parts = {"model": network()}
    proposal = Proposal("p", propose(parts, Runtime(), "latency")[0][0].recipe, "")
    assert keep_apart(proposal, parts, {"model": ["first", "second", "last"]}) == Recipe(())


@pytest.mark.parametrize("name", ["a", "a[0]", "a*", "what?", "x[[]y", "/layer/0"])
def test_a_literal_pattern_matches_its_name_and_nothing_else(name) -> None:
    from fnmatch import fnmatchcase

    assert fnmatchcase(name, literal(name))
    assert not fnmatchcase(f"{name}b", literal(name))
    for other in ("a0", "ab", "whatx", "a"):
        assert fnmatchcase(other, literal(name)) is (other == name)


def test_a_small_classifier_behind_convolutions_is_not_worth_a_form_of_its_own() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="product"),
    ]
    weights = {"k": rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "w": rng.normal(size=(8, 5)).astype(np.float32)}
    model = make_model(nodes, [("x", FLOAT, ["n", 3, 16, 16])], [("y", FLOAT, ["n", 5])], weights)
    found, notes = names({"model": model})
    assert all(name.startswith("int8 static, ") for name in found)
    assert any("under 10 % of the multiply-accumulates" in note.text for note in notes)
    assert "int8 dynamic" in names({"model": model}, "size")[0]


def test_the_two_kinds_of_steps_touch_different_layers() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="product"),
    ]
    weights = {"k": rng.normal(size=(4, 3, 1)).astype(np.float32), "w": rng.normal(size=(8, 8)).astype(np.float32)}
    model = make_model(nodes, [("x", FLOAT, ["n", 3, 8])], [("y", FLOAT, ["n", 4, 8])], weights)
    proposals, _ = propose({"model": model}, Runtime(), "latency")
    mixed = next(one for one in proposals if one.name == "int8 static convolutions, dynamic products")
    assert [step.include for step in mixed.recipe.steps] == [("Op:Conv",), ("Op:MatMul",)]
    assert isinstance(mixed.recipe.steps[1].technique, QuantizeDynamic)
    assert not isinstance(mixed.recipe.steps[0].technique, QuantizeWeights)
