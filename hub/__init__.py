"""The Hugging Face Hub: what a name stands for, downloads that resume and are checked, ranges, uploads."""
