import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from alula.errors import ModelError
from alula.graph.export import as_model, export_module, relative_error
from alula.testing import dense_network


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        return self.head(self.drop(self.stem(image).mean((2, 3))))


class Sequences(nn.Module):
    """An embedding, an LSTM and attention, in one to spare exports."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.lstm = nn.LSTM(12, 12, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, tokens):
        x, _ = self.lstm(self.table(tokens))
        x = self.encoder(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return {"mean": y.mean(1), "all": y}


class Unsupported(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3, 2)


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


@pytest.fixture(scope="module")
def vision():
    torch.manual_seed(0)
    module = Vision().train()
    module.head.eval()
    return module, export_module(module, torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def sequences():
    torch.manual_seed(0)
    module = Sequences().eval()
    return module, export_module(module, (torch.randint(0, 20, (1, 6)),))


def test_names_are_those_of_the_state_dict(vision):
    module, model = vision
    state = module.state_dict()
    assert set(model.graph.initializers) >= set(state) - {"stem.1.num_batches_tracked"}
    np.testing.assert_array_equal(model.weight("stem.0.weight"), state["stem.0.weight"].numpy())
    operators = [node.op_type for node in model.graph]
    assert operators.count("BatchNormalization") == 1
    assert "Dropout" not in operators
    assert [layer.name for layer in model.layers()] == ["stem.0", "head"]


def test_it_computes_what_the_module_computes(vision):
    module, model = vision
    image = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        module.eval()
        expected = module(image).numpy()
        module.train()
    (output,) = model.run({"image": image.numpy()}).values()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_the_batch_is_free_and_the_module_is_as_it_was(vision):
    module, model = vision
    assert str(model.inputs[0]) == "image: float32[batch, 3, 8, 8]"
    assert model.outputs[0].shape == ("batch", 4)
    assert module.training


def test_each_submodule_keeps_its_mode():
    module = Vision().train()
    module.head.eval()
    model = export_module(module, torch.randn(1, 3, 8, 8), dynamic_batch=False, input_names=["x"], output_names=["y"])
    assert (module.training, module.stem[1].training, module.head.training) == (True, True, False)
    assert str(model.inputs[0]) == "x: float32[1, 3, 8, 8]"
    assert model.outputs[0].name == "y"
    before = model.fingerprint
    with torch.no_grad():
        module.head.weight.add_(1)
    assert model.fingerprint == before  # the model shares no memory with the module


def test_nothing_of_the_machine_is_in_the_file(vision):
    data = vision[1].to_bytes()
    assert b"/site-packages/" not in data
    assert Path(__file__).name.encode() not in data
    assert b"pkg.torch" not in data


def test_recurrent_attention_and_embedding(sequences):
    module, model = sequences
    state = module.state_dict()
    biases = {"lstm.bias_ih_l0", "lstm.bias_hh_l0"}
    assert set(model.graph.initializers) >= set(state) - biases
    assert "lstm.bias_ih_l0+lstm.bias_hh_l0" in model.graph.initializers
    layers = {layer.name: layer for layer in model.layers()}
    assert {"table", "lstm", "encoder.linear1", "encoder.linear2", "encoder.self_attn.out_proj", "attention"} <= set(
        layers
    )
    assert layers["lstm"].weights == ("lstm.weight_ih_l0", "lstm.weight_hh_l0")
    assert layers["lstm"].bias is not None
    assert layers["table"].operator == "Gather"
    assert len(model.layers()) == 8


def test_layouts_that_metadata_tells_lead_back_to_the_state_dict(sequences):
    module, model = sequences
    told = set()
    for name, tensor in module.state_dict().items():
        value = model.graph.initializers.get(name)
        if value is None:
            continue
        array = value.const_value.numpy()
        if "alula.transposed" in value.metadata_props:
            array = array.transpose(
                np.argsort([int(axis) for axis in value.metadata_props["alula.transposed"].split(",")])
            )
            told.add("transposed")
        if "alula.blocks" in value.metadata_props:
            order = [int(block) for block in value.metadata_props["alula.blocks"].split(",")]
            array = array.reshape(len(order), -1)[np.argsort(order)]
            told.add("blocks")
        np.testing.assert_array_equal(array.reshape(tensor.shape), tensor.numpy(), err_msg=name)
    assert told == {"transposed", "blocks"}


def test_sequences_compute_the_same_at_another_batch(sequences):
    module, model = sequences
    tokens = torch.randint(0, 20, (5, 6))
    with torch.no_grad():
        expected = module(tokens)
    outputs = model.run({"tokens": tokens.numpy()})
    for array, name in zip(outputs.values(), ("mean", "all"), strict=True):
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-3, atol=1e-5)


def test_no_shape_arithmetic_is_left_of_attention(sequences):
    operators = {node.op_type for node in sequences[1].graph}
    assert not operators & {"Constant", "Identity", "CastLike", "Dropout", "Sqrt"}


def test_named_arguments_and_half_precision():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3, dtype=torch.float16)

        def forward(self, left, *, right):
            return self.linear(left + right).float()

    ones = torch.ones(2, 4, dtype=torch.float16)
    model = export_module(Two(), {"right": ones, "left": 2 * ones})
    assert {spec.name for spec in model.inputs} == {"left", "right"}
    assert all(spec.shape == ("batch", 4) for spec in model.inputs)
    assert model.weight("linear.weight").dtype == np.float16


def test_what_onnx_runtime_cannot_run_is_refused():
    with pytest.raises(ModelError, match=r"exported from Linear does not run on the example: ONNX Runtime refuses"):
        export_module(nn.Linear(4, 3, dtype=torch.bfloat16), torch.ones(2, 4, dtype=torch.bfloat16))


def test_chatter_is_silent(capfd, caplog, recwarn):
    export_module(nn.Linear(4, 3), torch.randn(2, 4))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert len(recwarn) == 0


def test_an_operation_that_onnx_lacks_is_named():
    with pytest.raises(
        ModelError,
        match=r"ONNX has no operation for aten\.linalg_eig.*test_export\.py, line \d+, in forward",
    ):
        export_module(Unsupported(), torch.randn(2, 3, 3), dynamic_batch=False)


def test_control_flow_on_data_is_told_with_its_line():
    with pytest.raises(ModelError, match=r"cannot export Branches: .*test_export\.py, line \d+, in forward"):
        export_module(Branches(), torch.randn(2, 3))


def test_a_fixed_batch_tells_the_fix():
    with pytest.raises(ModelError, match=r"FixedBatch fails on its example repeated .*dynamic_batch=False"):
        export_module(FixedBatch(), torch.randn(2, 6))
    model = export_module(FixedBatch(), torch.randn(2, 6), dynamic_batch=False)
    assert model.outputs[0].shape == (2, 3, 2)


def test_a_graph_that_computes_something_else_is_refused():
    with pytest.raises(ModelError, match=r"computes something else than the module: output .* is there randomness"):
        export_module(Random(), torch.randn(2, 3))


def test_a_module_that_fails_on_its_example():
    with pytest.raises(ModelError, match="Linear fails on its example: RuntimeError"):
        export_module(nn.Linear(4, 3), torch.randn(2, 5))


def test_a_bad_example():
    with pytest.raises(ModelError, match="an example is a tensor, a tuple of tensors or a mapping"):
        export_module(nn.Linear(4, 3), 7)


def test_as_model(tmp_path):
    model = dense_network()
    assert as_model(model) is model
    path = model.save(tmp_path / "model.onnx")
    assert as_model(path).fingerprint == as_model(str(path)).fingerprint == model.fingerprint
    proto = onnx.load(path)
    before = proto.SerializeToString(deterministic=True)
    assert as_model(proto).fingerprint == model.fingerprint
    assert proto.SerializeToString(deterministic=True) == before
    assert as_model(nn.Linear(4, 3), np.zeros((2, 4), np.float32)).outputs[0].shape == ("batch", 3)
    with pytest.raises(ModelError, match=r"a module needs example inputs.*Linear"):
        as_model(nn.Linear(4, 3))
    with pytest.raises(ModelError, match=r"a model is an alula Model, .* got int"):
        as_model(3)


def test_relative_error():
    assert relative_error(np.array([1.0, 4.0]), np.array([1.0, 3.0])) == 0.25
    assert relative_error(np.array([np.nan, np.inf]), np.array([np.nan, np.inf])) == 0
    assert relative_error(np.array([1.0]), np.array([np.nan])) == np.inf
    assert relative_error(np.array([0.0]), np.array([1.0])) == np.inf
    assert relative_error(np.zeros((2, 0)), np.zeros((2, 0))) == 0
    assert relative_error(np.zeros(2), np.zeros(3)) == np.inf


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 4)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.embedding(first) * second


@pytest.fixture(scope="module")
def two_inputs():
    module, same = _TwoInputs().eval(), torch.randn(2, 4)
    return module, export_module(module, (same, same), dynamic_batch=False, output_names=["embedding"])


def test_one_tensor_given_twice_stays_two_inputs(two_inputs):
    module, model = two_inputs
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    names = [spec.name for spec in model.inputs]
    outputs = model.run(dict(zip(names, (first.numpy(), second.numpy()), strict=True)))
    np.testing.assert_allclose(outputs["embedding"], module(first, second).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_an_output_may_be_called_like_a_submodule(two_inputs):
    assert [spec.name for spec in two_inputs[1].outputs] == ["embedding"]


def test_modules_of_any_number_of_inputs():
    class Total(torch.nn.Module):
        def forward(self, first, *others):
            return sum(others, first)

    model = export_module(Total(), (torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)))
    feeds = {spec.name: np.ones((5, 3), np.float32) for spec in model.inputs}
    assert (next(iter(model.run(feeds).values())) == 3).all()
