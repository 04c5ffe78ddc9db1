"""Mixtures of talkers: what all data of separation share, and sets of published layouts."""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import data as catalogue
from core.data_module import Baseline, DataModule
from core.errors import UserError
from core.split_plan import PARTS, Split
from domains.speech import pictures
from domains.speech.baselines import ideal_ratio_mask, unprocessed
from domains.speech.layouts import find_part, looked_at, read_part
from domains.speech.mixing import Mixer, Recipe
from domains.speech.mixtures import collate
from domains.speech.preprocessing import SeparationFiles
from domains.speech.sets import DrawnMixtures, PreparedMixtures
from domains.speech.talkers import files, find_talkers
from domains.speech.talkers import looked_at as talkers_looked_at

Rate = Literal[8000, 16000]
Mixtures = DrawnMixtures | PreparedMixtures


class Parts(NamedTuple):
    """What was read: mixtures of train, val and test, and what the user should know.

    Attributes:
        sets: the mixtures.
        content: names and hashes of the files, for the fingerprint.
        told: a line on what was read.
        notes: what was repaired or is odd.
        split: how a folder was divided, where it had to be.
    """

    sets: tuple[Mixtures, Mixtures, Mixtures]
    content: str
    told: str
    notes: tuple[str, ...] = ()
    split: Split | None = None


class MixtureData(DataModule):
    """What all data of separation share.

    A subclass gives :meth:`read`; the other arguments are those of its own.
    """

    linked: ClassVar[tuple[str, ...]] = ("speakers",)
    collate = staticmethod(collate)
    train_set: Mixtures
    val_set: Mixtures
    test_set: Mixtures

    def __init__(
        self,
        speakers: int,
        rate: Rate,
        segment: float | None,
        loader: tuple[int, int, int, int | None],
    ) -> None:
        super().__init__(*loader)
        if not 2 <= speakers <= 5:
            raise UserError(f"data.speakers={speakers} must be 2 to 5")
        if segment is not None and segment <= 0:
            raise UserError(f"data.segment={segment} must be seconds above 0, or null")
        self.speakers = speakers
        self.rate = rate
        self.segment = None if segment is None else round(segment * rate)
        self.parts: Parts | None = None

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """State the number of talkers."""
        return {"speakers": config.get("speakers") or 2}

    def read(self) -> Parts:
        """Find the mixtures of each part."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def setup(self, stage: str | None = None) -> None:
        """Look at every recording, and lay out the mixtures; done once.

        Raises:
            UserError: naming the file that does not fit.
        """
        if self.parts is None:
            self.parts = self.read()
            self.train_set, self.val_set, self.test_set = self.parts.sets

    @property
    def preprocessing(self) -> SeparationFiles:
        """How the network hears a recording of the user's."""
        return SeparationFiles(self.rate, self.speakers)

    def plain_train_set(self) -> Mixtures:
        """Give the mixtures of training at their own speed."""
        plain = copy.copy(self.train_set)
        if isinstance(plain, PreparedMixtures):
            plain.speed = False
        return plain

    def keep(self, folder: Path) -> None:
        """Write what trains, validates and tests, where a folder had to be divided."""
        parts = self._read()
        if parts.split is not None:
            parts.split.save(folder / "splits.parquet")

    def summary(self) -> list[str]:
        """Say what was read and what is made of it."""
        parts = self._read()
        counts = ", ".join(
            f"{len(own):,} for {what}"
            for own, what in zip(parts.sets, ("training", "validation", "the test"), strict=True)
        )
        mixtures = f"mixtures of {self.speakers} talkers at {self.rate:,} Hz: {counts}"
        return [parts.told, mixtures, *(f"note: {note}" for note in parts.notes)]

    def fingerprint(self) -> str:
        """Identify the recordings."""
        return hashlib.sha256(self._read().content.encode()).hexdigest()[:32]

    def baselines(self) -> dict[str, Baseline]:
        """The mixture itself, and an oracle that knows the sources, as an upper bound."""
        return {
            "the mixture itself": unprocessed,
            "ideal ratio mask (oracle)": ideal_ratio_mask,
        }

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw scores and spectrograms, and write some mixtures and estimates as WAV."""
        return pictures.draw(predictions, folder, self.test_set, self.rate)

    def _read(self) -> Parts:
        self.setup()
        assert self.parts is not None
        return self.parts


class SeparationData(MixtureData):
    """A set of the catalogue with mixtures on the disk: WSJ0-2mix, WHAM!, WHAMR!, Libri2Mix.

    Args:
        dataset: ``wsj0_2mix``, ``wsj0_3mix``, ``wham``, ``whamr``, ``libri2mix`` or
            ``libri2mix_samples``.
        mixture: the folder of the mixtures; None takes the set's usual one, such as ``mix_both`` of
            WHAM!, with noise.
        sources: the folders of the targets, with ``{}`` for the number; None takes ``s{}``, or
            ``s{}_anechoic`` of WHAMR!, without the room.
        part: the folder that trains, where there are several, such as ``train-360``.
        rate: samples a second; recordings of another rate are resampled.
        segment: seconds that mixtures of training are cut to, at random; None takes them whole.
        speed: play the sources of training at 95, 100 or 105 %, and mix them anew.
        talkers: a folder of single-talker recordings, from which the mixtures of training are drawn
            anew in each epoch (dynamic mixing), as many as there are on the disk.
        speaker: how the talkers of that folder are told apart: ``folder``, or a regular expression
            with a group.
        noise: a folder of noise for them.
        batch_size: mixtures in a training batch, over all processes together.
        eval_batch_size: mixtures in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn; None takes the run's seed.
    """

    def __init__(
        self,
        dataset: str,
        mixture: str | None = None,
        sources: str | None = None,
        part: str | None = None,
        rate: Rate = 8000,
        segment: float | None = None,
        speed: bool = False,
        talkers: str | None = None,
        speaker: str = "folder",
        noise: str | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        entry = catalogue.entry(dataset)
        if not isinstance(entry.facts.get("speakers"), int):
            raise UserError(f"data.dataset={dataset} holds no mixtures; see speech/separate")
        loader = (batch_size, eval_batch_size, num_workers, seed)
        super().__init__(entry.facts["speakers"], rate, segment, loader)
        if noise is not None and talkers is None:
            raise UserError(
                f"data.noise={noise}: noise is mixed to --data.talkers, which is absent"
            )
        self.entry = entry
        self.mixture = mixture or entry.facts.get("mixture")
        self.sources = sources
        self.part = part
        self.speed = speed
        self.talkers = talkers
        self.speaker = speaker
        self.noise = noise

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """State the number of talkers of the set."""
        return {"speakers": catalogue.entry(config["dataset"]).facts.get("speakers", 2)}

    @property
    def facts(self) -> dict[str, Any]:
        """The set, its licence, the published setting and what was noticed."""
        setting: dict[str, Any] = {"dynamic_mixing": self.talkers is not None}
        if self.mixture != self.entry.facts.get("mixture"):
            setting["mixture"] = self.mixture
        if self.rate != self.entry.facts["sample_rate"]:
            setting["rate"] = self.rate
        return {
            "dataset": self.entry.name,
            "setting": setting,
            "licence": self.entry.licence,
            "citation": self.entry.citation,
            "notes": list(self.parts.notes) if self.parts else [],
        }

    def read(self) -> Parts:
        """Read the files of the set."""
        root = catalogue.locate(self.entry.name)
        found, notes = [], []
        for name in PARTS:
            items, told = looked_at(
                read_part(self._folder(root, name), self.speakers, self.mixture, self.sources),
                self.rate,
            )
            found.append(items)
            notes += [note for note in told if note not in notes]
        if self._test_alone:
            notes.append("a set for tests: the same mixtures train, validate and test")
        content = repr([[(item.name, item.content) for item in part] for part in found])
        plain = [PreparedMixtures(part, self.rate) for part in found]
        train: Mixtures = PreparedMixtures(found[0], self.rate, self.segment, self.speed)
        if self.talkers is not None:
            recordings, more = talkers_looked_at(
                find_talkers(Path(self.talkers), self.speaker), self.rate
            )
            recipe = Recipe(
                self.speakers,
                self.rate,
                noises=tuple(files(Path(self.noise))) if self.noise else (),
            )
            mixer = Mixer(recordings, recipe, self.talkers, self.speed)
            train = DrawnMixtures(mixer, len(found[0]), 0, self.segment)
            content += repr(recordings)
            notes += more
        hours = sum(item.frames / item.rate for part in found for item in part) / 3600
        told_line = f"{self.entry.title}: {hours:.1f} hours of mixtures"
        return Parts((train, plain[1], plain[2]), content, told_line, tuple(notes))

    @property
    def _test_alone(self) -> bool:
        return list(self.entry.splits.get("files", ())) == ["test"]

    def _folder(self, root: Path, name: str) -> Path:
        if self._test_alone:
            return root
        chosen = self.part if name == "train" else None
        folder = find_part(root, name, chosen)
        if folder is None:
            what = f"the folder {chosen}, see --data.part" if chosen else f"a folder for {name}"
            raise UserError(f"{root}: lacks {what}")
        return folder
