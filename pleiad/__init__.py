"""Pleiad: transformer-based systems of seven domains under one roof."""
