# make test-optimum: folders of layout optimum in the hands of optimum itself, which has an environment of its
# own, since it needs transformers 4. TORCH_INDEX is as for make setup.

.PHONY: test-optimum

.dev/optimum/.installed: tools/optimum/requirements.txt
	@mkdir -p .dev
	test -x .dev/optimum/bin/python || $(PYTHON) -m venv .dev/optimum
	.dev/optimum/bin/python -m pip install --quiet --constraint $< $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	.dev/optimum/bin/python -m pip install --quiet --requirement $<
	@touch $@

test-optimum: setup .dev/optimum/.installed ## load ONNX folders with optimum (downloads it to an environment of its own)
	$(BIN)/python tools/try_optimum.py
