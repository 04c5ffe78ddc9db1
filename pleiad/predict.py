"""``pleiad predict``: a finished run, or its ``model/`` folder, answers on a user's own files.

Of one file the result is a file, or a folder where the model's domain writes several files; of more
it is a folder with one result an input and a ``manifest.csv``. A result appears under its name only
when it is whole, and its row is written after it: killed at any moment and started again, the
command goes on with what is not done.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from core.early_exit.transform import exits_of
from core.errors import UserError
from core.openers import file_digest
from core.pretrained import Pretrained, fingerprint, from_pretrained
from core.progress import bar
from pleiad.experiments import nearest, pairs
from pleiad.inputs import absolute, assign, collect, is_plain
from pleiad.manifest import Entry, Manifest
from pleiad.together import Together, read_table

FULL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
"""Errors of the system after which no further result can be written."""
FOLDER = "/"
"""The ending of results that are folders."""
PAIRS = "pairs"
"""The option that names a table of files that belong together."""
TOLD = 10
"""How many failed inputs are told one by one."""


Source = Path | Together
"""One input, or several that are answered together."""


class Outcome(NamedTuple):
    """What a call came to: one line, and the first of the inputs that failed, with the reason."""

    text: str
    failed: int = 0
    faults: tuple[str, ...] = ()


def predict(
    model: Path,
    given: Sequence[str] | None,
    output: Path,
    plot: Path | None = None,
    trust: tuple[str, ...] = (),
    rest: Sequence[str] = (),
) -> Outcome:
    """Answer on files.

    Args:
        model: a run folder or a ``model/`` folder.
        given: what ``--input`` was given; None where the model takes several files together, which
            ``rest`` then names.
        output: for one file that which its result is; else a folder, made if absent.
        plot: the PNG to draw, for one file.
        trust: modules of the user's that the model may name.
        rest: further options, ``--key=value``, for the model's preprocessing.

    Raises:
        UserError: if the model, an option, or a single file is not fit for it.
    """
    single = given is not None and is_plain(given)
    if given is None:
        pass
    elif single:
        _check_single(Path(given[0]), output, plot)
    elif plot is not None:
        raise UserError(f"--plot {plot}: draws one file's picture; give --input one file")
    elif output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; several results need a folder")
    pretrained = from_pretrained(model, trust=trust)
    if pretrained.preprocessing is None:
        raise UserError(f"{model}: holds no preprocessing, so it cannot read files")
    names = getattr(pretrained.preprocessing, "inputs", ())
    options = _options(pretrained.preprocessing, rest)
    sources: list[Source] | None
    if given is None or names:
        sources, options = _together(pretrained.preprocessing, given, options)
        single = len(sources) == 1 and isinstance(sources[0], Together) and not sources[0].title
        if plot is not None and not single:
            raise UserError(f"--plot {plot}: draws one picture; give --{' and --'.join(names)}")
    else:
        sources = [Path(given[0])] if single else None
    if single:
        _check_kind(output, getattr(pretrained.preprocessing, "result", ""))
    began = time.perf_counter()
    if single:
        assert sources is not None
        outcome = Outcome(_answer(pretrained, sources[0], output, plot, options))
    else:
        if sources is None:
            suffixes = getattr(pretrained.preprocessing, "suffixes", (".csv",))
            sources = list(collect(given or (), suffixes, output))
        outcome = _predict_all(pretrained, fingerprint(model), sources, output, options)
    left = _left_early(pretrained, time.perf_counter() - began)
    return outcome._replace(text=outcome.text + left)


def _left_early(pretrained: Pretrained, seconds: float) -> str:
    """Say at which depth the rows left a network that has early exits."""
    exits = exits_of(pretrained.network)
    if exits is None or not (met := exits.meter.report()):
        return ""
    layers = len(exits.control.layers)
    return (
        f"; mean exit {met['mean_exit']:.2f} of {layers} layers,"
        f" {100 * met['macs_share']:.0f} % of the multiply-adds,"
        f" {met['samples'] / seconds:,.0f} rows a second"
    )


def _check_single(source: Path, output: Path, plot: Path | None) -> None:
    if not source.is_file():
        raise UserError(f"--input {source}: no such file")
    for name, path in (("--output", output), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{name} {path}: there is no folder {path.parent}")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input file; give another name")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot {plot}: a picture is written as PNG; name it {plot.stem}.png")


def _check_kind(output: Path, result: str) -> None:
    """Refuse a folder where one file is written, and a file where several are."""
    if output.is_dir() and result != FOLDER:
        raise UserError(f"--output {output}: is a folder; name a file")
    if output.is_file() and result == FOLDER:
        raise UserError(f"--output {output}: is a file; the results need a folder")


def _options(preprocessing: Any, rest: Sequence[str]) -> dict[str, str]:
    """Read the options that the model's preprocessing knows."""
    known: Mapping[str, str] = getattr(preprocessing, "options", {})
    if inputs := getattr(preprocessing, "inputs", ()):
        about = {name: f"the {name} file" for name in inputs}
        known = {**about, PAIRS: f"in their place, a CSV with columns {', '.join(inputs)}", **known}
    options = {}
    for key, value in pairs(_whole(rest, getattr(preprocessing, "flags", ()))):
        name = key.replace("-", "_")
        if name not in known:
            close = nearest(name, list(known))
            listed = "; ".join(f"--{each}: {text}" for each, text in known.items())
            hint = f"did you mean --{' or --'.join(close)}? " if close else ""
            there_is = f"there is {listed}" if listed else "this model's domain has none"
            raise UserError(f"predict: unknown option --{key}; {hint}{there_is}")
        options[name] = value
    return options


def _together(
    preprocessing: Any, given: Sequence[str] | None, options: dict[str, str]
) -> tuple[list[Source], dict[str, str]]:
    """Find the files that a model takes together, and the options that are left."""
    names: tuple[str, ...] = getattr(preprocessing, "inputs", ())
    if not names:
        raise UserError("predict: --input is missing")
    wanted = " and ".join(f"--{name}" for name in names)
    if given is not None:
        raise UserError(f"--input: this model takes {wanted}, or --{PAIRS}=FILE.csv")
    own = {name: Path(options.pop(name)) for name in names if name in options}
    if table := options.pop(PAIRS, None):
        if own:
            raise UserError(f"--{PAIRS}={table}: takes the place of {wanted}; give one of them")
        beside = getattr(preprocessing, "beside_inputs", ())
        return list(read_table(Path(table), names, beside)), options
    if missing := [name for name in names if name not in own]:
        raise UserError(f"predict: --{missing[0]} is missing; this model takes {wanted}")
    for name, path in own.items():
        if not path.is_file():
            raise UserError(f"--{name} {path}: no such file")
    return [Together(own)], options


def _whole(rest: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Give a flag that stands alone its value."""

    def alone(place: int) -> bool:
        last = place + 1 == len(rest) or rest[place + 1].startswith("--")
        return last and rest[place].removeprefix("--").replace("-", "_") in flags

    return [f"{word}=true" if alone(place) else word for place, word in enumerate(rest)]


def _predict_all(
    pretrained: Pretrained,
    model: str,
    inputs: Sequence[Source],
    folder: Path,
    options: Mapping[str, str],
) -> Outcome:
    if folder.is_file():
        raise UserError(f"--output {folder}: is a file; several results need a folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"--output {folder}: another process is writing there") from None
    with lock:
        manifest = Manifest(folder, model, _written(options))
        try:
            ending = getattr(pretrained.preprocessing, "result", "")
            ending = ending(options) if callable(ending) else ending
            paths = [each if isinstance(each, Path) else each.name for each in inputs]
            names = assign(paths, folder, manifest.outputs(), ending)
            rows = _Rows(pretrained, folder, manifest, options)
            with bar("predict", len(inputs)) as advance:
                for source, name in zip(inputs, names, strict=True):
                    rows.add(source, name)
                    advance(1)
        finally:
            manifest.close()
    return rows.outcome()


class _Rows:
    """Answer on one input after the other, past those that fail."""

    def __init__(
        self,
        pretrained: Pretrained,
        folder: Path,
        manifest: Manifest,
        options: Mapping[str, str],
    ) -> None:
        self.pretrained = pretrained
        self.folder = folder
        self.manifest = manifest
        self.options = options
        self.done = self.kept = self.failed = 0
        self.faults: list[str] = []

    def add(self, source: Source, name: str) -> None:
        """Answer on ``source`` unless that is done already."""
        began = time.perf_counter()
        digest, path = "", absolute(source if isinstance(source, Path) else source.name)
        try:
            digest = _digest(source)
            known = self.manifest.done.get(path)
            if known and known.sha256 == digest:
                self.kept += 1
                getattr(self.pretrained.preprocessing, "passed", bool)(source)
                return
            name = known.output if known else name
            output = self.folder / name
            output.parent.mkdir(parents=True, exist_ok=True)
            status, message = "done", _answer(self.pretrained, source, output, None, self.options)
            self.done += 1
        except Exception as error:  # whatever one file does, the others are answered
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            kind = type(error).__name__
            told = "" if kind in ("UserError", "DataError") else f"{kind}: "
            status, message = "failed", told + " ".join(str(error).split())
            if path in self.manifest.done:  # the result of what the file was before
                _remove(self.folder / self.manifest.done[path].output)
            self.failed += 1
            if len(self.faults) < TOLD:
                self.faults.append(message if str(source) in message else f"{source}: {message}")
        seconds = f"{time.perf_counter() - began:.3f}"
        self.manifest.append(
            Entry(
                *(path, name, status, seconds, message, digest),
                *(self.manifest.model, self.manifest.options),
            )
        )

    def outcome(self) -> Outcome:
        """Sum up."""
        counts = {"written": self.done, "there already": self.kept, "failed": self.failed}
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        totals = getattr(self.pretrained.preprocessing, "totals", str)()
        told += f"; {totals}" if totals else ""
        return Outcome(f"{self.folder}: {told}; {self.manifest.path}", self.failed, (*self.faults,))


def _answer(
    pretrained: Pretrained,
    source: Source,
    output: Path,
    plot: Path | None,
    options: Mapping[str, str],
) -> str:
    """Write one result under another name, flush it, and give it its name; return what was done."""
    part = output.with_name(f".part.{output.name}")
    endings = getattr(pretrained.preprocessing, "beside", ())
    _remove(part)  # of a process that was killed
    try:
        told = _asked(pretrained, source, part, plot, options)
        for path in part.iterdir() if part.is_dir() else [part] if part.is_file() else []:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for ending in endings:  # before the result: where that is, they are
            part.with_suffix(ending).replace(output.with_suffix(ending))
        _place(part, output)
    except BaseException as error:
        for path in (part, *(part.with_suffix(ending) for ending in endings)):
            _remove(path)
        if isinstance(error, UserError):
            raise UserError(str(error).replace(str(part), str(output))) from None
        raise
    return told.replace(str(part), str(output))


def _asked(
    pretrained: Pretrained,
    source: Source,
    part: Path,
    plot: Path | None,
    options: Mapping[str, str],
) -> str:
    """Let the model's preprocessing answer."""
    network, preprocessing = pretrained.network, pretrained.preprocessing
    told: str
    if isinstance(source, Path):
        told = preprocessing.predict_file(network, source, part, plot, **options)
    else:
        own = {**options, **source.options}
        told = preprocessing.predict_files(network, source.files, part, plot, **own)
    return told


def _digest(source: Source) -> str:
    """Identify the content of an input, or of files that belong together."""
    if isinstance(source, Together):
        return source.digest()
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    return file_digest(source)


def _place(part: Path, output: Path) -> None:
    """Give a whole result its name; what else is in a folder of that name stays there."""
    if not (part.is_dir() and output.is_dir()):
        part.replace(output)
        return
    for path in sorted(part.iterdir()):
        path.replace(output / path.name)
    part.rmdir()


def _remove(path: Path) -> None:
    """Remove a result, a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _written(options: Mapping[str, str]) -> str:
    """Write options as one line; of an option that names a file, its content counts."""
    told = {
        name: f"{value} {file_digest(Path(value))[:16]}" if Path(value).is_file() else value
        for name, value in sorted(options.items())
    }
    return json.dumps(told)
