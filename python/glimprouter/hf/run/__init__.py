"""A run over prompts: the loop of forward passes, whose turn it is, and the public face."""
