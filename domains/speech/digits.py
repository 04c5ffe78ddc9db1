"""Mixtures of spoken digits: a set of six talkers that is small enough to train on a CPU."""

from collections.abc import Sequence
from typing import Any, Literal

import data as catalogue
from core.errors import UserError
from domains.speech.data import MixtureData, Parts
from domains.speech.mixing import Recipe
from domains.speech.own_data import drawn
from domains.speech.talkers import Recording, find_talkers, looked_at

UNSEEN = ("theo", "yweweler")
"""The talkers that the setting ``unseen`` is tested on."""


class DigitMixtures(MixtureData):
    """Two or three talkers who say digits at once, one second, levels within 5 dB.

    Recordings 0 to 4 of each digit and talker test, as the set is published, 5 to 9 validate, the
    others train. With ``unseen`` talkers theo and yweweler test, recordings 0 to 4 of the other
    four validate, and the rest of these trains.

    Args:
        dataset: the set of the catalogue.
        setting: ``known`` talkers, in recordings that training has not heard, or ``unseen``.
        talkers: only these, for ``known``; None takes all six.
        speakers: talkers of a mixture.
        seconds: how long a mixture is; digits of a talker are joined to that.
        mixtures: how many are drawn for an epoch.
        val_mixtures: how many are drawn for validation, always the same.
        test_mixtures: how many are drawn for the test, always the same.
        speed: play recordings of training at 95, 100 or 105 %.
        batch_size: mixtures in a training batch, over all processes together.
        eval_batch_size: mixtures in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn in training; None takes the run's seed.
    """

    def __init__(
        self,
        dataset: Literal["fsdd"] = "fsdd",
        setting: Literal["known", "unseen"] = "known",
        talkers: Sequence[str] | None = None,
        speakers: int = 2,
        seconds: float = 1.0,
        mixtures: int = 200,
        val_mixtures: int = 40,
        test_mixtures: int = 200,
        speed: bool = False,
        batch_size: int = 2,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(speakers, 8000, None, (batch_size, eval_batch_size, num_workers, seed))
        entry = catalogue.entry(dataset)
        unknown = sorted(set(talkers or ()) - set(entry.facts["speakers"]))
        if unknown or (talkers and setting == "unseen"):
            raise UserError(
                f"data.talkers={list(talkers or ())}: give some of"
                f" {', '.join(entry.facts['speakers'])}, and --data.setting=known"
            )
        if seconds <= 0 or min(mixtures, val_mixtures, test_mixtures) < 1:
            raise UserError(
                f"data.seconds={seconds} must be above 0, and data.mixtures={mixtures},"
                f" data.val_mixtures={val_mixtures}, data.test_mixtures={test_mixtures} at least 1"
            )
        self.entry = entry
        self.setting = setting
        self.talkers = talkers
        self.recipe = Recipe(speakers, level=(-5.0, 5.0), join=seconds)
        self.counts = (mixtures, val_mixtures, test_mixtures)
        self.speed = speed

    @property
    def facts(self) -> dict[str, Any]:
        """The set, its licence and the setting."""
        return {
            "dataset": self.entry.name,
            "setting": {"talkers": self.setting, "speakers": self.speakers},
            "licence": self.entry.licence,
            "citation": self.entry.citation,
            "notes": list(self.parts.notes) if self.parts else [],
        }

    def read(self) -> Parts:
        """Divide the recordings by number, or by talker."""
        root = catalogue.locate(self.entry.name)
        recordings, notes = looked_at(find_talkers(root, r"\d_([a-z]+)_\d+"), self.rate)
        parts: list[list[Recording]] = [[], [], []]
        for recording in recordings:
            if not self.talkers or recording.talker in self.talkers:
                parts[self._place(recording)].append(recording)
        return drawn(parts, self.recipe, self.counts, None, self.speed, notes)

    def _place(self, recording: Recording) -> int:
        """Say whether a recording trains (0), validates (1) or tests (2)."""
        number = int(recording.path.stem.rsplit("_", 1)[1])
        if self.setting == "known":
            return 2 if number < 5 else 1 if number < 10 else 0
        if recording.talker in UNSEEN:
            return 2
        return 1 if number < 5 else 0
