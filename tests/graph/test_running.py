import numpy as np
import pytest

from alula.errors import DataError, ModelError
from alula.graph import running
from alula.graph.running import Runner, first_line
from alula.testing import attention_network, dense_network, model_from_text, random_feeds, recurrent_network


def test_it_computes_what_the_graph_says():
    model = dense_network()
    x = random_feeds(model)["features"]
    hidden = np.maximum(x @ model.weight("hidden_weight") + model.weight("hidden_bias"), 0)
    expected = hidden @ model.weight("output_weight").T + model.weight("output_bias")
    np.testing.assert_allclose(Runner(model)({"features": x})["scores"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"threads": 1}, {"optimise": False}])
def test_options_do_not_change_the_result(options):
    model = attention_network()
    feeds = random_feeds(model)
    np.testing.assert_allclose(Runner(model, **options)(feeds)["y"], model.run(feeds)["y"], rtol=1e-4, atol=1e-5)


def test_state_goes_round():
    model = recurrent_network()
    feeds = random_feeds(model)
    first = model.run(feeds)
    second = model.run({"frames": feeds["frames"], "h": first["next_h"], "c": first["next_c"]})
    assert second["next_h"].shape == feeds["h"].shape
    assert not np.array_equal(first["next_h"], second["next_h"])


def test_beyond_2_gib_it_opens_a_file(monkeypatch):
    model = dense_network()
    expected = model.run(random_feeds(model))["scores"]
    monkeypatch.setattr(running, "PROTOBUF_LIMIT_BYTES", 10)
    np.testing.assert_array_equal(Runner(model)(random_feeds(model))["scores"], expected)


def test_a_graph_that_onnx_runtime_refuses():
    model = model_from_text("n (float[2] x) => (float[2] y) { y = mine.Swirl (x) }")
    with pytest.raises(ModelError, match=r"ONNX Runtime refuses the graph: .*Swirl"):
        Runner(model)


def test_a_graph_that_fails_on_its_inputs():
    model = model_from_text("n (float[a] x, float[b] y) => (float[c] z) { z = Add (x, y) }")
    with pytest.raises(DataError, match="the graph fails on these inputs: "):
        model.run({"x": np.ones(2, np.float32), "y": np.ones(3, np.float32)})


def test_first_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
