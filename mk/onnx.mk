# make test-onnx-ways: every way to read, in both flavours, of every shape of a model that the tests know.

.PHONY: test-onnx-ways

test-onnx-ways: setup ## logits of ONNX graphs of some 120 shapes against transformers, in every way they are read: KCONV_SEED=2
	$(BIN)/python -m pytest -q -rP tests/onnx_ways_wide.py
