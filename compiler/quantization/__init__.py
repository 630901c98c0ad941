"""INT8 for ONNX Runtime: fusion units, ranges, placement, Q/DQ pairs, bias correction. See docs/quantization.md."""
