"""llama.cpp and onnxruntime, each in a process of its own: a bad file costs that process and no more."""

KV_TYPES = ("f16", "f32", "q8_0")
"""Types of llama.cpp's attention cache that kconv offers."""
