"""From a checkpoint to a file: recipes, the pipeline and the GGUF writer."""
