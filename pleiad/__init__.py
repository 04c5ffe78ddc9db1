"""Pleiad: transformer-based systems of seven domains under one roof.

What a user's own code needs most is found here, and imported when it is asked for.
"""

import importlib
from typing import Any

from pleiad import hidden

if not hidden.is_command() and (_fault := hidden.fault()):
    raise ImportError(_fault)

_FACE = {
    "from_pretrained": "core.pretrained",
    "save_pretrained": "core.pretrained",
    "ActivationCompression": "core.activation_compression",
    "compress": "core.activation_compression",
    "restore": "core.activation_compression",
    "EarlyExit": "core.early_exit.transform",
    "KeepFloat32": "core.precision_islands",
    "AdamWBF16": "core.optimizers.adamw_bf16",
    "GaLore": "core.optimizers.galore",
    "MemoryMeter": "core.callbacks.memory",
    "PrecisionGuard": "core.callbacks.precision",
    "ExactResume": "core.callbacks.exact_resume",
    "Checkpoints": "core.callbacks.checkpoints",
    **dict.fromkeys(
        ("AutoFreeze", "BlockCoordinate", "FreezeOut", "Freezing", "GradualUnfreezing", "LISA"),
        "core.callbacks.freezing",
    ),
    **dict.fromkeys(("SlimFit", "Static"), "core.callbacks.freezing"),
}
"""Where each name of the public face lies."""


def __getattr__(name: str) -> Any:
    """Import a name of the public face."""
    if name not in _FACE:
        raise AttributeError(f"module 'pleiad' has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
