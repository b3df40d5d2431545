"""llama.cpp and onnxruntime, each in a process of its own: a bad file costs that process and no more."""
