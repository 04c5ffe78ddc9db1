"""Whether another package on Python's path hides one of ours.

It imports nothing else of the suite, so that it can tell.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds ``pleiad`` and must hold the packages of ``OURS``."""
OURS = ("core", "data", "domains", "configs")
FIX = "rename or uninstall it, or work in another folder and with a clean PYTHONPATH"


def foreign(name: str) -> str | None:
    """Give the file or folder that Python finds in the place of our package; None if it is ours."""
    spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    place = str(places[0])
    return None if Path(place).resolve() == ROOT / name / "__init__.py" else place


def fault() -> str | None:
    """Tell in one line which package is hidden, by what, and what to do; None if none is."""
    for name in OURS:
        if place := foreign(name):
            return f"{place} hides the package {name!r} of pleiad ({ROOT / name}); {FIX}"
    return None


def is_command() -> bool:
    """Say whether this process is the ``pleiad`` command, which tells of the fault itself."""
    return any(Path(word).stem == "pleiad" for word in sys.orig_argv)
