"""Attention over pages for the models of transformers, and layers in their fused form."""
