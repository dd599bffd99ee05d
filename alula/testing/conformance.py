"""What every technique and every target must do, ours or yours: inherit, give one fixture, run pytest.

    class TestMyTechnique(TechniqueConformance):
        @pytest.fixture
        def technique(self):
            return MyTechnique()

A technique may refuse a network, with an :class:`alula.errors.AlulaError`; it may never give a wrong graph, change the
model it was given, or be silent about what is broken.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alula.errors import AlulaError, DataError
from alula.graph.model import Model
from alula.graph.running import Runner
from alula.graph.statistics import collect
from alula.targets import Target
from alula.techniques import Context, Technique
from alula.testing.models import (
    attention_network,
    convolution_network,
    dense_network,
    embedding_network,
    random_feeds,
    recurrent_network,
)
from alula.testing.odd_models import odd_models

Feeds: TypeAlias = dict[str, np.ndarray]
USUAL: dict[str, Callable[[], Model]] = {
    network.__name__.replace("_", " "): network
    for network in (convolution_network, dense_network, recurrent_network, embedding_network, attention_network)
}
NETWORKS: dict[str, Callable[[], Model]] = {**USUAL, **odd_models()}
WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zero": np.zeros_like,
    "constant": lambda weight: np.full_like(weight, 0.37),
    "subnormal": lambda weight: (weight * np.float32(1e-39)).astype(np.float32),
    "tiny beside the bias": lambda weight: (weight * np.float32(1e-12)).astype(np.float32),
    "large": lambda weight: (weight * np.float32(1e15)).astype(np.float32),
    "one outlier": lambda weight: np.where(np.arange(weight.size).reshape(weight.shape) == 0, 1e4, weight),
}


STRENGTHS: dict[str, tuple[float, float, float]] = {
    "bits": (2, 4, 8), "weight_bits": (2, 4, 8), "amount": (0.8, 0.4, 0.1), "kept": (0.2, 0.5, 0.9),
}  # fmt: skip
"""Settings that tell how much a technique does, each from the harshest to the gentlest."""


class TechniqueConformance:
    """Tests that any technique passes; give a fixture ``technique``.

    Attributes:
        tolerance: the largest error that 8 bits may cause in the outputs of the networks here, relative to their norm.
        beyond: which of the ``WEIGHTS`` here lie beyond the arithmetic that the technique uses.
    """

    tolerance: ClassVar[float] = 0.1
    beyond: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture
    def technique(self) -> Technique:
        """The technique under test."""
        raise NotImplementedError("give a fixture named technique")

    @pytest.mark.parametrize("network", NETWORKS)
    def test_it_gives_a_valid_graph_that_does_the_same(self, technique: Technique, network: str) -> None:
        """The graph is valid for onnx, ONNX Runtime, OpenVINO; interface and outputs stay, and so does the input."""
        model = NETWORKS[network]()
        before = model.to_bytes()
        feeds, expected = known_run(network)
        result = attempt(technique, model, feeds)
        assert model.to_bytes() == before, "the input is not changed"
        if isinstance(result, AlulaError):
            assert str(result), "a refusal says why"
            return
        check_valid(result)
        assert (result.inputs, result.outputs) == (model.inputs, model.outputs), "the interface stays"
        outputs = Runner(result, threads=1)(feeds)
        assert {name: (array.shape, array.dtype) for name, array in outputs.items()} == {
            name: (array.shape, array.dtype) for name, array in expected.items()
        }
        assert relative_error(expected, outputs) <= self.tolerance

    @pytest.mark.parametrize("network", USUAL)
    def test_same_input_same_bytes_as_many_as_predicted(
        self, technique: Technique, network: str, tmp_path: Path
    ) -> None:
        """Equal models give equal files, and ``size_bytes`` counts every byte of them, scales and all."""
        feeds = known_run(network)[0]
        first, second = (attempt(technique, USUAL[network](), feeds) for _ in range(2))
        if isinstance(first, AlulaError) or isinstance(second, AlulaError):
            assert str(first) == str(second)
            return
        assert first.to_bytes() == second.to_bytes()
        assert first.size_bytes == first.save(tmp_path / "model.onnx").stat().st_size

    def test_it_treats_at_least_one_network(self, technique: Technique) -> None:
        """Refusing everything is no way to pass."""
        assert any(_changes(technique, network) for network in NETWORKS)

    def test_the_gentler_it_is_the_less_it_errs(self, technique: Technique) -> None:
        """Where the technique has a strength: the error falls from 2 over 4 to 8 bits, and the less is taken away."""
        setting = strength_of(technique)
        if setting is None:
            pytest.skip("it has no strength")
        errors = [_total_error(dataclasses.replace(technique, **{setting: value})) for value in STRENGTHS[setting]]  # type: ignore[type-var]
        assert errors[0] > errors[1] > errors[2], errors

    def test_taking_nothing_away_changes_nothing(self, technique: Technique) -> None:
        """Where the technique takes an amount away: at 0 the outputs stay."""
        if strength_of(technique) != "amount":
            pytest.skip("it takes no amount away")
        for network, build in USUAL.items():
            feeds, expected = known_run(network)
            result = attempt(dataclasses.replace(technique, amount=0.0), build(), feeds)  # type: ignore[type-var]
            if isinstance(result, Model):
                assert relative_error(expected, Runner(result, threads=1)(feeds)) <= 1e-5, network

    @pytest.mark.parametrize("poison", [np.nan, np.inf], ids=["NaN", "infinity"])
    @pytest.mark.parametrize("network", USUAL)
    def test_broken_weights_are_refused_by_name_or_left_in_sight(
        self, technique: Technique, network: str, poison: float
    ) -> None:
        """A NaN or an infinity is never quantized away."""
        clean, feeds = USUAL[network](), known_run(network)[0]
        layer = clean.layers()[-1]
        broken = with_weight(clean, layer.weight, lambda weight: np.where(weight == weight.flat[0], poison, weight))
        result = attempt(technique, broken, feeds, calibrated_on=clean)
        if isinstance(result, AlulaError):
            assert layer.name in str(result) or "none of" in str(result), result
            return
        assert not np.isfinite(result.weight(layer.weight)).all(), "the weight is as broken as before"

    @pytest.mark.parametrize("weights", WEIGHTS)
    def test_extreme_weights(self, technique: Technique, weights: str) -> None:
        """All-zero, constant, subnormal, tiny, large weights: the outputs stay what they were."""
        if weights in self.beyond:
            pytest.skip("beyond the technique's arithmetic")
        for network in ("convolution network", "dense network"):
            model, feeds = USUAL[network](), known_run(network)[0]
            for layer in model.layers()[:2]:
                model = with_weight(model, layer.weight, WEIGHTS[weights])
            expected = Runner(model, threads=1)(feeds)
            result = attempt(technique, model, feeds)
            if isinstance(result, AlulaError):
                continue
            outputs = Runner(result, threads=1)(feeds)
            assert all(np.isfinite(output).all() for output in outputs.values())
            assert relative_error(expected, outputs) <= 2 * self.tolerance, network

    def test_only_the_layers_that_were_asked_for(self, technique: Technique) -> None:
        """Weights of other layers stay as they are, also where a layer that was asked for shares one."""
        model, feeds = NETWORKS["one weight for two layers"](), known_run("one weight for two layers")[0]
        for layer in model.layers():
            result = attempt(technique, model, feeds, layers=(layer.name,))
            if isinstance(result, AlulaError):
                continue
            outputs = Runner(result, threads=1)(feeds)
            assert relative_error(known_run("one weight for two layers")[1], outputs) <= self.tolerance
            kept = [other for other in result.layers() if other.name != layer.name]
            assert kept or not _changes(technique, "one weight for two layers"), "the other layer reads a plain weight"
            for other in kept:
                np.testing.assert_array_equal(result.weight(other.weight), model.weight(other.weight))

    def test_an_empty_batch_stays_empty(self, technique: Technique) -> None:
        """No rows in, no rows out."""
        for network in ("convolution network", "dense network"):
            model = USUAL[network]()
            result = attempt(technique, model, known_run(network)[0])
            if isinstance(result, AlulaError):
                continue
            outputs = Runner(result, threads=1)(random_feeds(model, batch=0))
            assert [output.shape[0] for output in outputs.values()] == [0]


class TargetConformance:
    """Tests that any target passes; give a fixture ``target``."""

    @pytest.fixture
    def target(self) -> Target:
        """The target under test."""
        raise NotImplementedError("give a fixture named target")

    @pytest.mark.parametrize("network", USUAL)
    def test_it_computes_what_the_graph_computes(self, target: Target, network: str, tmp_path: Path) -> None:
        """By the graph's own names of inputs and outputs, within what float32 allows."""
        feeds, expected = known_run(network)
        opened = target.open(target.build(USUAL[network](), tmp_path, "net"))
        outputs = opened(feeds)
        assert {name: array.shape for name, array in outputs.items()} == {n: a.shape for n, a in expected.items()}
        assert relative_error(expected, outputs) < 1e-3

    def test_an_artifact_is_its_files(self, target: Target, tmp_path: Path) -> None:
        """Sizes add up, all lies in the folder, and the same model gives the same bytes."""
        first, second = (target.build(dense_network(), tmp_path / name) for name in ("a", "b"))
        assert first.target == target.name
        assert first.path in first.files
        assert first.size_bytes == sum(file.stat().st_size for file in first.files)
        assert sorted(first.files) == sorted((tmp_path / "a").iterdir()), "nothing else is left behind"
        assert [_digest(file) for file in first.files] == [_digest(file) for file in second.files]

    @pytest.mark.parametrize(
        "feeds",
        [{}, {"other": np.zeros((2, 16), np.float32)}, {"features": np.zeros((2, 16), np.float64)},
         {"features": np.zeros((2, 15), np.float32)}],
        ids=["missing", "unknown", "type", "shape"],
    )  # fmt: skip
    def test_feeds_are_checked(self, target: Target, feeds: Feeds, tmp_path: Path) -> None:
        """What does not fit is refused with the input's name."""
        opened = target.open(target.build(dense_network(), tmp_path))
        with pytest.raises(DataError, match="features"):
            opened(feeds)

    def test_a_missing_file_is_refused(self, target: Target, tmp_path: Path) -> None:
        """As an error of ours."""
        artifact = target.build(dense_network(), tmp_path)
        artifact.path.unlink()
        with pytest.raises(AlulaError, match=artifact.path.name):
            target.open(artifact)

    def test_it_describes_itself(self, target: Target) -> None:
        """In words that a reader can repeat a result from; its traits are plain facts."""
        description = target.describe()
        assert description
        assert all(isinstance(text, str) and text for pair in description.items() for text in pair)
        assert target.traits() == target.traits()


def strength_of(technique: Technique) -> str | None:
    """The setting that tells how much the technique does, where it has one that is in use."""
    settings = {field.name: getattr(technique, field.name) for field in dataclasses.fields(technique)}  # type: ignore[arg-type]
    in_use = (name for name in STRENGTHS if settings.get(name) is not None)
    return next((name for name in in_use if settings.get("by") != "rank"), None)


def attempt(
    technique: Technique,
    model: Model,
    feeds: Mapping[str, np.ndarray],
    *,
    layers: tuple[str, ...] | None = None,
    calibrated_on: Model | None = None,
) -> Model | AlulaError:
    """The model after calibrating on one set of feeds and treating the layers of these names (all); or the refusal."""
    chosen = tuple(layer for layer in model.layers() if layers is None or layer.name in layers)
    try:
        statistics = collect(calibrated_on or model, [feeds], technique.requests(model, chosen))
        return technique.apply(model, Context(chosen, statistics))
    except AlulaError as error:
        return error


@cache
def known_run(network: str) -> tuple[Feeds, Feeds]:
    """Feeds for a network, and what it gives for them."""
    model = NETWORKS[network]()
    feeds = random_feeds(model, batch=4)
    for spec in model.inputs:
        if spec.dtype == np.bool_:
            feeds[spec.name] = np.ones(feeds[spec.name].shape, np.bool_)
    return feeds, Runner(model, threads=1)(feeds)


def check_valid(model: Model) -> None:
    """Raise unless onnx takes the graph as valid and OpenVINO can read it (where it is installed)."""
    data = model.to_bytes()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    try:
        import openvino
    except ModuleNotFoundError:
        return
    openvino.Core().read_model(data)


def with_weight(model: Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Model:
    """The model with another initializer of this name, unchecked."""
    graph = model.edit()
    changed = np.asarray(change(model.weight(name)), model.weight(name).dtype)
    graph.graph.initializers[name].const_value = ir.tensor(changed, name=name)
    return model.edited(graph)


def relative_error(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> float:
    """The largest of the outputs' errors, each |actual - expected| / |expected|."""
    return max(_relative_error(expected[name], actual[name]) for name in expected)


def _relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    wanted, got = expected.astype(np.float64), actual.astype(np.float64)
    size = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(got - wanted)) / max(size, float(np.finfo(np.float32).tiny))


def _changes(technique: Technique, network: str) -> bool:
    model = NETWORKS[network]()
    result = attempt(technique, model, known_run(network)[0])
    return isinstance(result, Model) and result.to_bytes() != model.to_bytes()


def _total_error(technique: Any) -> float:
    return sum(_errors(technique))


def _errors(technique: Technique) -> Iterator[float]:
    """Errors in the outputs of those usual networks that the technique takes."""
    for network, build in USUAL.items():
        feeds, expected = known_run(network)
        result = attempt(technique, build(), feeds)
        if isinstance(result, Model):
            yield relative_error(expected, Runner(result, threads=1)(feeds))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
