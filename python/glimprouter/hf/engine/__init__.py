"""The forward passes of a pair and its keys and values: on pages, or by plain attention."""
