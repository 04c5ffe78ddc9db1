"""Layers that two domains share: plain torch, no Lightning, no files."""
