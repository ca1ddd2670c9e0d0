"""Attach to the durable channels of a local `rondevud`."""

__version__ = "0.1.0"
