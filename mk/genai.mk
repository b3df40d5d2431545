# make test-genai: folders of decoders in the hands of onnxruntime-genai, which brings an onnxruntime of its own
# and so has an environment of its own; onnxsim and onnxconverter-common are tried there, too.

.PHONY: test-genai

.dev/genai/.installed: tools/genai/requirements.txt
	@mkdir -p .dev
	test -x .dev/genai/bin/python || $(PYTHON) -m venv .dev/genai
	.dev/genai/bin/python -m pip install --quiet --requirement $<
	@touch $@

test-genai: setup .dev/genai/.installed ## run ONNX folders in onnxruntime-genai (downloads it to an environment of its own)
	$(BIN)/python tools/try_genai.py
