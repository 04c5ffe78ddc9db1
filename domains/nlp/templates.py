"""Texts that are one template filled in twice: what is tested was then all but seen in training."""

import re
from collections.abc import Mapping, Sequence

FILLED = re.compile(
    r"https?://\S+|www\.\S+|\S+@\S+\.\w+|@\w+|\d+(?:[.,:/-]\d+)*|[^\w\s]+", re.UNICODE
)
"""What differs between texts of one template: addresses, names of users, numbers, punctuation."""
PAIRS = (("test", "train"), ("val", "train"), ("test", "val"))


def template(text: str) -> str:
    """Write a text without what is filled in: no numbers, addresses, punctuation or capitals.

    Example:
        >>> template("Pay 12.50 EUR by 3/4!") == template("pay 9 EUR, by 12/11")
        True
    """
    return " ".join(FILLED.sub(" ", text.lower()).split())


def shared_templates(parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Count the texts of one part whose template stands in another, in sentences for the user."""
    known = {part: [template(text) or text for text in texts] for part, texts in parts.items()}
    notes = []
    for part, other in PAIRS:
        seen = dict.fromkeys(known.get(other, ()))
        found = [row for row, each in enumerate(known.get(part, ())) if each in seen]
        if found:
            equal = set(parts[other])
            exact = sum(parts[part][row] in equal for row in found)
            first = parts[part][found[0]]
            shown = first if len(first) <= 60 else f"{first[:57]}..."
            notes.append(
                f"{len(found):,} of {len(parts[part]):,} texts of {part} stand in {other} too, up"
                f" to numbers, case and punctuation ({exact:,} word for word), such as {shown!r}"
            )
    return notes
