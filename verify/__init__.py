"""Proving a converted file against the fp32 checkpoint: tokens, metadata, weights, logits."""
