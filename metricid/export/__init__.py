"""From a trained model to a file for production: ONNX in float or int8, checked against PyTorch."""

from metricid.export.check import Check, check_models
from metricid.export.graph import export_onnx
from metricid.export.quantize import quantize_int8

__all__ = ["Check", "check_models", "export_onnx", "quantize_int8"]
