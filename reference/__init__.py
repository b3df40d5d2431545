"""The fp32 reference: transformers' own model on weights that are streamed, and what watches it."""
