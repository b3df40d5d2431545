"""Models as ONNX: a graph description a family, the builder they use, and the writer."""
