"""What the columns of a table of network flows mean: declared, not coded.

As YAML, every key but ``numeric`` or ``categorical`` may be left out:

    numeric: [duration, bytes]
    categorical: [protocol, port]
    label: attack
    benign: none
    source: src_ip
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from core.errors import UserError

Names = tuple[str, ...]


@dataclass(frozen=True)
class FlowSpecification:
    """The fields of a table of flows.

    Names are compared without the spaces around them. A column that is not named is not read.

    Attributes:
        numeric: fields that are numbers.
        categorical: fields that are levels, numbers such as ports among them.
        label: the column that names the attack; needed to train, not to predict.
        benign: its value where there is none.
        header: the columns of files without a header, in order; empty where there is one.
        drop: columns that must not be fields.
        classes: for several classes, the label values of each; empty makes each value one.
        source: the column of the source host.
        destination: the column of the destination host.
        time: the column of the time.
        encoding: of text files.

    Raises:
        UserError: if a column has two uses, or there is no field.
    """

    numeric: Names = ()
    categorical: Names = ()
    label: str | None = None
    benign: str | None = None
    header: Names = ()
    drop: Names = ()
    classes: Mapping[str, Names] = field(default_factory=dict)
    source: str | None = None
    destination: str | None = None
    time: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        """Check that the uses do not contradict one another."""
        used = [*self.numeric, *self.categorical]
        if not used:
            raise UserError("the specification names no field; give numeric or categorical")
        used += [self.label] if self.label else []
        used += self.drop
        if twice := sorted({name for name in used if used.count(name) > 1}):
            raise UserError(
                f"the specification has two uses for the column {twice[0]!r}; name it once among"
                " numeric, categorical, label and drop"
            )
        for key in ("source", "destination"):
            if (name := getattr(self, key)) in self.numeric:
                raise UserError(f"the {key} host {name!r} is a numeric field too; drop it there")
        values = [value for own in self.classes.values() for value in own]
        if self.benign is not None:
            values.append(self.benign)
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"the specification puts the label {twice[0]!r} into two classes")

    @property
    def fields(self) -> Names:
        """The numeric fields, then the categorical ones."""
        return (*self.numeric, *self.categorical)

    def to_json(self) -> dict[str, Any]:
        """Give plain values, without those that equal their defaults."""
        plain = {**asdict(self), "classes": {k: list(v) for k, v in self.classes.items()}}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        return {k: v for k, v in plain.items() if v and not (k == "encoding" and v == "utf-8")}

    @classmethod
    def from_json(cls, mapping: Any, where: str) -> "FlowSpecification":
        """Read plain values; ``where`` names them in messages.

        Raises:
            UserError: naming the key that is unknown or has a wrong value.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where}: must map keys such as numeric, categorical and label")
        known = [each.name for each in fields(cls)]
        given: dict[str, Any] = {}
        for key, value in mapping.items():
            if key not in known:
                raise UserError(f"{where}: unknown key {key!r}{near(str(key), known)}")
            given[key] = _checked(key, value, where)
        try:
            return cls(**given)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def changed(self, **given: Any) -> "FlowSpecification":
        """Give the specification with what is not None in ``given``.

        Names of ``numeric``, ``categorical`` and ``drop`` come to those there are; a column that is
        given a use loses its former one.
        """
        given = {key: value for key, value in given.items() if value is not None}
        uses = {key: given.pop(key, ()) for key in ("numeric", "categorical", "drop")}
        taken = {name for names in uses.values() for name in names}
        taken |= {given["label"]} if "label" in given else set()
        for key, added in uses.items():
            uses[key] = (*(name for name in getattr(self, key) if name not in taken), *added)
        label = None if self.label in taken else self.label
        return replace(self, **{"label": label, **uses, **given})


def _checked(key: str, value: Any, where: str) -> Any:
    if key in ("numeric", "categorical", "header", "drop"):
        return _names(value, f"{where}: {key}")
    if key == "classes":
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: classes must map each class to a list of label values")
        return {str(name): _names(own, f"{where}: classes: {name}") for name, own in value.items()}
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UserError(f"{where}: {key}={value!r} must be one word; quote it")
    return None if value is None else str(value).strip()


def _names(value: Any, where: str) -> Names:
    if not isinstance(value, list) or not all(
        isinstance(each, str | int) and not isinstance(each, bool) for each in value
    ):
        raise UserError(f"{where}: must be a list of names, as in [a, b]; quote yes and no")
    return tuple(str(each).strip() for each in value)


def near(word: str, known: Iterable[str], count: int = 1) -> str:
    """Say which known names are most like ``word``, as the end of a message."""
    lower = {name.lower(): name for name in known}
    found = [lower[name] for name in get_close_matches(word.lower(), list(lower), count)]
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""
