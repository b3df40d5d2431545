# make test-fuzz: mutated files of every kind, given to every command, for FUZZ_SECONDS from FUZZ_SEED.
# make test-faults: every fault at every call of the operating system that conversions make.

FUZZ_SECONDS ?= 600
FUZZ_SEED ?= $(shell date +%s)

.PHONY: test-fuzz test-faults
test-fuzz: setup ## mutated files to every command for ten minutes: FUZZ_SECONDS, FUZZ_SEED
	KCONV_FUZZ_SECONDS=$(FUZZ_SECONDS) KCONV_FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python tests/fuzz_material.py

test-faults: setup ## every fault (no space, input/output error, half a call, the end) at every call of conversions
	KCONV_FAULTS_FULL=1 $(BIN)/python -m pytest -s tests/test_faults.py
