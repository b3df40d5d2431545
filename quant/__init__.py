"""Quantization formats, policies and libggml."""
