"""``pleiad predict``: a finished run, or its ``model/`` folder, answers on a user's own file."""

from pathlib import Path

from core.errors import UserError
from core.pretrained import from_pretrained


def predict(
    model: Path, source: Path, output: Path, plot: Path | None = None, trust: tuple[str, ...] = ()
) -> str:
    """Read ``source``, write the answer to ``output``; give one line that says what was done.

    Raises:
        UserError: if the model or the file is not fit for it.
    """
    if not source.is_file():
        raise UserError(f"--input {source}: no such file")
    for name, path in (("--output", output), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{name} {path}: there is no folder {path.parent}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot {plot}: a picture is written as PNG; name it {plot.stem}.png")
    pretrained = from_pretrained(model, trust=trust)
    if pretrained.preprocessing is None:
        raise UserError(f"{model}: holds no preprocessing, so it cannot read files")
    told: str = pretrained.preprocessing.predict_file(pretrained.network, source, output, plot)
    return told
