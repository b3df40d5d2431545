# make test-arm: the kernels compiled for aarch64 by Zig's Clang, run by qemu-aarch64 (qemu-user of the distribution)
# and held against libggml of this machine. Zig comes from PyPI, into an environment of its own.

ARM := .dev/arm
ARM_CC = $(ARM)/venv/bin/python -m ziglang cc -target aarch64-linux-musl -static

.PHONY: test-arm
test-arm: setup $(ARM)/venv/.installed ## the kernels compiled for ARM and run by qemu-aarch64: libggml's bytes (needs qemu-user)
	$(ARM_CC) -std=gnu11 -O2 -ffp-contract=off -fno-fast-math quant/kernels/*.c tools/arm/encode.c -o $(ARM)/encode -lm
	$(BIN)/python tools/arm/compare.py $(ARM)/encode

$(ARM)/venv/.installed:
	python3 -m venv $(ARM)/venv && $(ARM)/venv/bin/pip install -q ziglang==0.17.1 && touch $@
