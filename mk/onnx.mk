# make test-onnx-ways: every way to read, in both flavours, of every shape of a model that the tests know.
# make providers: which nodes browsers take, for the table of docs/*/onnx.md. Needs Node, npm and Chromium (CHROMIUM).

.PHONY: test-onnx-ways providers

test-onnx-ways: setup ## logits of ONNX graphs of some 120 shapes against transformers, in every way they are read: KCONV_SEED=2
	$(BIN)/python -m pytest -q -rP tests/onnx_ways_wide.py

.dev/providers/.installed: tools/providers/requirements.txt
	@mkdir -p .dev
	test -x .dev/providers/bin/python || $(PYTHON) -m venv .dev/providers
	.dev/providers/bin/python -m pip install --quiet -r tools/providers/requirements.txt
	@touch $@

.dev/openvino/.installed: tools/providers/openvino.txt
	@mkdir -p .dev
	test -x .dev/openvino/bin/python || $(PYTHON) -m venv .dev/openvino
	.dev/openvino/bin/python -m pip install --quiet -r tools/providers/openvino.txt
	@touch $@

providers: setup .dev/js/.installed .dev/providers/.installed .dev/openvino/.installed ## ask WASM, WebGPU and OpenVINO which nodes they take, for docs/*/onnx.md
	$(BIN)/python tools/onnx_providers.py
