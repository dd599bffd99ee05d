"""What quantization did to a network, layer by layer: how much noise, where from, why, and what helps."""
