"""Recordings of single talkers: who speaks is told by the folder or by the name of the file."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from core.split_columns import listed
from domains.speech import audio
from domains.speech.survey import survey


class Recording(NamedTuple):
    """A recording of one talker.

    Attributes:
        id: its path below the folder.
        path: the file.
        talker: who speaks.
        frames: its samples; 0 where it was not looked at.
        rate: samples a second.
        content: a hash of its samples.
    """

    id: str
    path: Path
    talker: str
    frames: int = 0
    rate: int = 0
    content: int = 0


def files(folder: Path) -> list[Path]:
    """List the recordings below a folder, by name.

    Raises:
        UserError: if there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of recordings")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in audio.SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not found:
        there = Counter(path.suffix for path in folder.rglob("*.*") if path.is_file())
        others = f" (it holds {listed(there)})" if there else ""
        raise UserError(
            f"{folder}: holds no recording ({', '.join(audio.SUFFIXES[:4])}){others};"
            " others are converted by ffmpeg -i FILE FILE.wav"
        )
    return found


def find_talkers(folder: Path, rule: str) -> list[Recording]:
    """Find the recordings of a folder and who speaks.

    Args:
        folder: of recordings, one talker each.
        rule: ``folder``, the first folder below it; or a regular expression, searched in the path
            below the folder, whose group is the talker.

    Raises:
        UserError: if a file's talker is not known.
    """
    try:
        pattern = re.compile(r"^([^/]+)/" if rule == "folder" else rule)
    except re.error as error:
        raise UserError(f"--data.speaker={rule}: is no regular expression ({error})") from None
    if pattern.groups != 1:
        raise UserError(
            f"--data.speaker={rule}: needs exactly one group for the talker, as in _([a-z]+)_"
        )
    found = []
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        match = pattern.search(name)
        if match is None or not match[1]:
            fix = "lies in no folder of a talker" if rule == "folder" else "does not match"
            raise UserError(
                f"{path}: {fix}, so who speaks is not known; give --data.speaker='REGEX' with a"
                " group for the talker's part of the name"
            )
        found.append(Recording(name, path, match[1]))
    return found


def looked_at(
    recordings: Sequence[Recording], rate: int
) -> tuple[list[Recording], tuple[str, ...]]:
    """Read all recordings once; give those that are not silent, and notes.

    Raises:
        UserError: naming a file that cannot be read.
    """
    found = survey([recording.path for recording in recordings], rate)
    each = zip(*(part.tolist() for part in found[:4]), strict=True)
    kept = [
        own._replace(frames=frames, rate=stored, content=content)
        for own, (stored, frames, content, silent) in zip(recordings, each, strict=True)
        if not silent
    ]
    notes = found.notes
    if len(kept) < len(recordings):
        first = recordings[int(np.argmax(found.silent))].path
        notes += (f"silent recordings were left out, {first.name} first",)
    return kept, notes


def by_talker(recordings: Sequence[Recording], speakers: int, where: str) -> dict[str, list[int]]:
    """List the numbers of each talker's recordings.

    Raises:
        UserError: if there are fewer talkers than a mixture needs.
    """
    found: dict[str, list[int]] = {}
    for number, recording in enumerate(recordings):
        found.setdefault(recording.talker, []).append(number)
    if len(found) < speakers:
        raise UserError(
            f"{where} has recordings of {len(found)} talker{'s' * (len(found) != 1)}"
            f" ({listed(sorted(found))}), and a mixture needs {speakers}; add talkers, see"
            " --data.speaker for how they are told apart, or divide by --data.split=random, which"
            " tests on talkers that training has heard"
        )
    return found
