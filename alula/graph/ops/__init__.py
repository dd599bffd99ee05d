"""ONNX's operators as functions of torch tensors, through which gradients flow.

An operator is one function. Its positional parameters are the operator's inputs, in order; its keyword parameters are
the attributes, by their ONNX names and with their ONNX defaults. Where an attribute of an older opset became an input
in a newer one, they are one parameter. What a parameter is annotated with says what the lift gives it:

=================  ===========================================================================================
``Tensor``         a tensor
``Ints``, ``Int``  whole numbers read on the host: a list or number where they are known, else a tensor
``Floats``         real numbers read on the host, likewise
``Number``         one number: a Python float where it is known, else a tensor
=================  ===========================================================================================

Three keyword parameters are no attributes: ``opset`` (the version the graph is written in), ``outputs`` (how many are
wanted), ``anchor`` (a tensor on the device where new ones belong), ``training`` (whether the module trains). An
operator of several outputs is annotated to return a tuple.
"""
