"""The Charformer front end of GBST-KEByT5: settings, tensors, the computation in numpy, and its own GGUF."""
