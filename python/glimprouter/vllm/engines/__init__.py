"""Engines that a client asks: in this process, or behind a URL."""
