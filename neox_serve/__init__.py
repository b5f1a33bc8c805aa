"""Serving clusters for GPT-NeoX models."""

__version__ = "0.1.0"
