"""Run folders: ``runs/<experiment>/<n>``, each claimed by one run alone."""

import os
from pathlib import Path

from core.errors import UserError
from core.openers import read_json

CLAIMED = "PLEIAD_RUN"
"""Environment variable by which further processes of a run learn its folder."""


def claim(experiment: str, folder: Path | None = None, root: Path = Path("runs")) -> Path:
    """Make the folder of a new run; two runs that ask at once get two folders.

    Raises:
        UserError: if the wished folder is taken, or a process of several has no way to know it.
    """
    if not is_first_process():
        known = os.environ.get(CLAIMED)
        if known is None and folder is None:
            raise UserError(
                "several processes started from outside need one folder: give --run FOLDER"
                " (after torchrun: `torchrun ... -m -- pleiad fit NAME --run FOLDER`)"
            )
        return Path(known) if known else folder or Path()
    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--run {folder}: exists already and is not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    else:
        parent = root / experiment
        parent.mkdir(parents=True, exist_ok=True)
        folder = _next(parent)
    os.environ[CLAIMED] = str(folder.resolve())
    return folder


def is_first_process() -> bool:
    """Say whether this is the only process of a run, or the first of several."""
    return not any(int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "RANK"))


def _next(parent: Path) -> Path:
    taken = [int(p.name) for p in parent.iterdir() if p.name.isdecimal()]
    number = max(taken, default=-1) + 1
    while True:
        try:
            (parent / str(number)).mkdir()  # atomic: exactly one process makes it
        except FileExistsError:
            number += 1
        else:
            return parent / str(number)


def is_finished(folder: Path) -> bool:
    """Say whether a run has its results."""
    return (folder / "results.json").is_file()


def newest(experiment: str, finished: bool, root: Path = Path("runs")) -> Path | None:
    """Find an experiment's newest finished run, or its newest unfinished one to go on with."""
    parent = root / experiment
    numbered = [p for p in parent.iterdir() if p.name.isdecimal()] if parent.is_dir() else []
    for folder in sorted(numbered, key=lambda p: int(p.name), reverse=True):
        useful = finished or (folder / "checkpoints" / "last").is_file()
        if (folder / "config.yaml").is_file() and is_finished(folder) == finished and useful:
            return folder
    return None


def results(folder: Path) -> dict[str, object]:
    """Read a run's results.

    Raises:
        UserError: if the run has none.
    """
    if not is_finished(folder):
        raise UserError(
            f"{folder}: the run is not finished; `pleiad fit {folder} --ckpt_path last` goes on"
        )
    content: dict[str, object] = read_json(folder / "results.json")
    return content
