"""What kconv does, from beginning to end: convert, quantize, to_onnx, plan, compare, calibrate, prove."""
