"""Pleiad: transformer-based systems of seven domains under one roof."""

from pleiad import hidden

if not hidden.is_command() and (_fault := hidden.fault()):
    raise ImportError(_fault)
