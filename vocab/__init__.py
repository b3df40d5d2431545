"""Reading tokenizers, adapting them and proving them in llama.cpp."""
