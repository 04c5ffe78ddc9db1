"""A user's own recordings, bound to no benchmark; and the mixtures of spoken digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from core.duplicates import duplicates
from core.errors import UserError
from core.split_plan import PARTS, Split
from core.splits import split
from domains.speech import layouts, talkers
from domains.speech.data import MixtureData, Parts, Rate
from domains.speech.layouts import Prepared, find_part, is_prepared, read_part
from domains.speech.mixing import Mixer, Recipe
from domains.speech.sets import DrawnMixtures, PreparedMixtures
from domains.speech.talkers import Recording, files, find_talkers


class OwnSeparationData(MixtureData):
    """Your own recordings: of single talkers, to be mixed here, or mixtures with their sources.

    Args:
        train: a folder of recordings of single talkers; or one of mixtures, with ``mix``, ``s1``
            and ``s2`` inside, perhaps in ``tr``, ``cv`` and ``tt``; or a LibriMix metadata CSV.
        val: the same for validation; without it a part of ``train`` is taken.
        test: the same for the test.
        speakers: talkers of a mixture.
        rate: samples a second; recordings of another rate are resampled.
        speaker: how talkers are told apart: ``folder``, the first one below ``train``; or a regular
            expression for the path below it, whose group is the talker, such as ``_([a-z]+)_``.
        split: how ``train`` is divided where a folder is not given: ``group:talker`` for talkers
            that training has not heard, ``random`` for recordings of the same talkers, or a
            ``splits.parquet`` of another run.
        val_fraction: share of the recordings for validation, where no folder is given.
        test_fraction: share of the recordings for the test, where no folder is given.
        mixture: the folder of mixtures, where there are several.
        sources: the folders of their sources, with ``{}`` for the number.
        mixtures: how many are drawn for an epoch; None draws one for each recording.
        val_mixtures: how many are drawn for validation, always the same.
        test_mixtures: how many are drawn for the test, always the same.
        length: ``min`` cuts the talkers of a mixture to the shortest, ``max`` fills up with silence
            to the longest.
        overlap: bounds of the share of the shorter of two talkers that is overlapped by the next;
            None lets all begin together.
        level: bounds in dB of the level of the other talkers above the first; None draws it as
            dynamic mixing does, about 2.5 dB below with a deviation of 2.7 dB.
        longest: seconds that longer recordings are cut to, at random, before they are mixed.
        join: seconds to which short recordings of a talker are joined; 0 takes one.
        speed: play recordings of training at 95, 100 or 105 %.
        noise: a folder of noise that is mixed in; the targets stay clean.
        snr: bounds in dB of the level of the loudest talker above the noise.
        rooms: a folder of impulse responses, one folder a room or all of one room.
        reverberant: the targets keep the sound of the room; else they are the direct sound.
        segment: seconds that mixtures of training are cut to, at random; None takes them whole.
        batch_size: mixtures in a training batch, over all processes together.
        eval_batch_size: mixtures in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn in training; None takes the run's seed.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        speakers: int = 2,
        rate: Rate = 8000,
        speaker: str = "folder",
        split: str = "group:talker",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        mixture: str | None = None,
        sources: str | None = None,
        mixtures: int | None = None,
        val_mixtures: int = 100,
        test_mixtures: int = 300,
        length: Literal["min", "max"] = "min",
        overlap: tuple[float, float] | None = None,
        level: tuple[float, float] | None = None,
        longest: float = 20.0,
        join: float = 0.0,
        speed: bool = False,
        noise: str | None = None,
        snr: tuple[float, float] = (-3.0, 6.0),
        rooms: str | None = None,
        reverberant: bool = False,
        segment: float | None = 4.0,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        loader = (batch_size, eval_batch_size, num_workers, seed)
        super().__init__(speakers, rate, segment, loader)
        shares = [0.0 if path else s for path, s in ((val, val_fraction), (test, test_fraction))]
        if min(val_fraction, test_fraction) <= 0 or sum(shares) >= 1:
            raise UserError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be"
                " shares that leave recordings to train on"
            )
        if min(val_mixtures, test_mixtures) < 1 or (mixtures is not None and mixtures < 1):
            raise UserError(
                f"data.mixtures={mixtures}, data.val_mixtures={val_mixtures} and"
                f" data.test_mixtures={test_mixtures} must be at least 1"
            )
        if overlap is not None and not 0 <= overlap[0] <= overlap[1] <= 1:
            raise UserError(f"data.overlap={list(overlap)} must be two shares from 0 to 1 in order")
        for name, bounds in (("level", level), ("snr", snr)):
            if bounds is not None and bounds[0] > bounds[1]:
                raise UserError(f"data.{name}={list(bounds)} must be two levels in order, in dB")
        if join < 0 or longest <= 0:
            raise UserError(
                f"data.join={join} must be seconds of 0 or more, and data.longest={longest} above 0"
            )
        self.given = (train, val, test)
        self.speaker = speaker
        self.rule = split
        self.shares = (1 - sum(shares), shares[0], shares[1])
        self.folders = (mixture, sources)
        self.counts = (mixtures, val_mixtures, test_mixtures)
        self.speed = speed
        self.noise = noise
        self.rooms = rooms
        self.mixing = {
            **{"length": length, "overlap": overlap, "level": level},
            **{"longest": longest, "join": join, "snr": snr, "reverberant": reverberant},
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The folder's name; no published setting."""
        notes = list(self.parts.notes) if self.parts else []
        return {"dataset": Path(self.given[0]).name, "setting": {}, "notes": notes}

    def read(self) -> Parts:
        """Find mixtures, or recordings to mix."""
        for name, given in zip(PARTS, self.given, strict=True):
            if given is not None and not Path(given).exists():
                raise UserError(f"--data.{name}={given}: no such file or folder")
        return self._prepared() if is_prepared(Path(self.given[0])) else self._drawn()

    def _prepared(self) -> Parts:
        """Take mixtures from the disk."""
        ignored = {"noise": self.noise, "rooms": self.rooms, **self.mixing}
        usual = {**dict.fromkeys(("overlap", "level", "noise", "rooms")), "join": 0.0}
        for name, value in usual.items():
            if ignored[name] != value:
                raise UserError(
                    f"--data.{name}: is for recordings of single talkers, and {self.given[0]} holds"
                    " mixtures already; leave it out"
                )
        paths = [Path(given) if given else None for given in self.given]
        root = paths[0]
        assert root is not None
        within = [find_part(root, name) for name in PARTS]
        if all(within) and not any(paths[1:]):
            paths = within
        found: list[list[Prepared]] = []
        notes: list[str] = []
        for path in paths:
            items = read_part(path, self.speakers, *self.folders) if path else []
            known, told = layouts.looked_at(items, self.rate) if items else ([], ())
            found.append(known)
            notes += [note for note in told if note not in notes]
        made = None
        if not all(found):
            names = [item.name for item in found[0]]
            rule = self.rule
            if rule == "group:talker":
                rule = "random"
                notes.append("who talks in a mixture is not known: they are divided at random")
            made = split(pd.DataFrame({"id": names}), rule, ids="id", fractions=self.shares)
            found = _divided(found, made)
        _check_parts(found, self.given[0])
        notes += _repeated(found, "mixtures")
        content = repr([[(item.name, item.content) for item in part] for part in found])
        seconds = sum(item.frames / item.rate for part in found for item in part)
        train = PreparedMixtures(found[0], self.rate, self.segment, self.speed)
        val, test = (PreparedMixtures(part, self.rate) for part in found[1:])
        line = f"{Path(self.given[0]).name}: {seconds / 60:,.1f} minutes of mixtures"
        return Parts((train, val, test), content, line, tuple(notes), made)

    def _drawn(self) -> Parts:
        """Draw mixtures from recordings of single talkers."""
        found: list[list[Recording]] = []
        notes: list[str] = []
        for given in self.given:
            items = find_talkers(Path(given), self.speaker) if given else []
            kept, told = talkers.looked_at(items, self.rate) if items else ([], ())
            found.append(kept)
            notes += [note for note in told if note not in notes]
        talkers.by_talker(found[0], self.speakers, self.given[0])
        made = None
        if not all(found):
            frame = pd.DataFrame(
                [(own.id, own.talker) for own in found[0]], columns=["id", "talker"]
            )
            made = split(frame, self.rule, ids="id", label="talker", fractions=self.shares)
            found = _divided(found, made)
            notes += made.notes
        _check_parts(found, self.given[0])
        notes += _repeated(found, "recordings")
        return drawn(found, self.recipe(), self.counts, self.segment, self.speed, notes, made)

    def recipe(self) -> Recipe:
        """Give how recordings are mixed."""
        noises = tuple(files(Path(self.noise))) if self.noise else ()
        return Recipe(
            self.speakers,
            self.rate,
            noises=noises,
            rooms=_rooms(Path(self.rooms)) if self.rooms else (),
            **self.mixing,  # type: ignore[arg-type]
        )


def drawn(
    found: Sequence[Sequence[Recording]],
    recipe: Recipe,
    counts: tuple[int | None, int, int],
    segment: int | None,
    speed: bool,
    notes: Sequence[str],
    made: Split | None = None,
) -> Parts:
    """Lay out mixtures drawn from the recordings of train, val and test.

    Args:
        found: the recordings of each part.
        recipe: how they are mixed.
        counts: of mixtures; None draws one for each recording.
        segment: samples that mixtures of training are cut to.
        speed: whether recordings of training are played at 95, 100 or 105 %.
        notes: what the user should know.
        made: how a folder was divided.

    Raises:
        UserError: if a part has too few talkers.
    """
    sets = []
    for part, (name, own, count) in enumerate(zip(PARTS, found, counts, strict=True)):
        mixer = Mixer(own, recipe, f"the {name} part", speed and part == 0)
        sets.append(DrawnMixtures(mixer, count or len(own), part, None if part else segment))
    heard = [{recording.talker for recording in own} for own in found]
    unseen = "none" if not heard[2] & heard[0] else "all" if heard[2] <= heard[0] else "some"
    told = (
        f"{sum(map(len, found)):,} recordings of {len(set().union(*heard))} talkers;"
        f" training has heard {unseen} of the {len(heard[2])} talkers of the test"
    )
    content = repr([[(own.id, own.talker, own.content) for own in part] for part in found])
    return Parts((sets[0], sets[1], sets[2]), content + repr(recipe), told, tuple(notes), made)


def _divided(found: Sequence[list[Any]], made: Split) -> list[list[Any]]:
    """Take from the first part what the others lack."""
    taken = [[found[0][row] for row in rows] for rows in (made.train, made.val, made.test)]
    return [taken[0], found[1] or taken[1], found[2] or taken[2]]


def _check_parts(found: Sequence[Sequence[Any]], where: str) -> None:
    for name, part in zip(PARTS, found, strict=True):
        if not part:
            raise UserError(f"{where}: no recording is left for {name}; see --data.split")


def _rooms(folder: Path) -> tuple[tuple[Path, ...], ...]:
    """List the impulse responses of each room."""
    rooms: dict[Path, list[Path]] = {}
    for path in files(folder):
        rooms.setdefault(path.parent, []).append(path)
    return tuple(tuple(own) for own in rooms.values())


def _repeated(found: Sequence[Sequence[Any]], what: str) -> list[str]:
    """Tell of recordings that stand in two parts, sample by sample."""
    rows = [(own.content, part) for part, items in zip(PARTS, found, strict=True) for own in items]
    frame = pd.DataFrame(rows, columns=["content", "part"])
    pairs = duplicates(frame, split(frame, "column:part"), ["content"])
    return [
        f"{what} of {pair.part} that stand in {pair.other} too: {pair.rows:,}" for pair in pairs
    ]
