"""What is being compressed: the ONNX graph, its layers, its cost and what calibration saw of it."""
