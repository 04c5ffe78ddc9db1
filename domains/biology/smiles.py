"""SMILES strings into tokens: atoms in brackets, other atoms, bonds, branches and ring numbers.

The pattern is that of Schwaller et al., Molecular Transformer, ACS Central Science 2019, which
GP-MoLFormer and many others use. What it does not match is an error here, never dropped.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.openers import read_json, read_text

PATTERN = re.compile(r"\[[^\]]+\]|Br|B|Cl|C|[NOSPFIbcnosp().=#\-+\\/:~@?>*$]|%[0-9]{2}|[0-9]")
BEGIN, END, PADDING, MASK, UNKNOWN = "<bos>", "<eos>", "<pad>", "<mask>", "<unk>"
SPECIALS = (BEGIN, END, PADDING, MASK)
"""The first tokens of every vocabulary, in this order; :data:`UNKNOWN` is the last."""


def split(smiles: str) -> list[str]:
    """Cut a SMILES string into its tokens.

    Raises:
        UserError: naming characters that belong to no token, and the place of the first.

    Example:
        >>> split("C[C@H](Cl)c1ccccc1")
        ['C', '[C@H]', '(', 'Cl', ')', 'c', '1', 'c', 'c', 'c', 'c', 'c', '1']
    """
    tokens = PATTERN.findall(smiles)
    if sum(map(len, tokens)) != len(smiles):
        strange = unmatched(smiles)
        place = next(iter(strange))
        told = ", ".join(map(repr, dict.fromkeys(strange.values())))
        raise UserError(
            f"{smiles!r}: {told} at character {place + 1} is no token of a SMILES string"
        )
    return tokens


def unmatched(smiles: str) -> dict[int, str]:
    """Give the characters that belong to no token by their places, counted from 0."""
    inside = {place for match in PATTERN.finditer(smiles) for place in range(*match.span())}
    return {place: found for place, found in enumerate(smiles) if place not in inside}


class SmilesTokenizer:
    """Numbers for the tokens of SMILES strings.

    Args:
        tokens: the vocabulary in order: :data:`SPECIALS`, then tokens of :func:`split`, and
            :data:`UNKNOWN`, which stands for all others, at the end.

    Raises:
        UserError: if the vocabulary has another form.

    Example:
        >>> tokenizer = SmilesTokenizer.build(["CCO", "CN"])
        >>> tokenizer.tokens
        ('<bos>', '<eos>', '<pad>', '<mask>', 'C', 'N', 'O', '<unk>')
        >>> tokenizer.encode("CS").tolist(), tokenizer.decode([0, 4, 5, 1, 2])
        ([0, 4, 7, 1], 'CN')
    """

    begin, end, padding, mask = range(len(SPECIALS))

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self.unknown = len(self.tokens) - 1
        check(self.tokens, "the vocabulary")
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        """Count the tokens of the vocabulary."""
        return len(self.tokens)

    @classmethod
    def build(cls, molecules: Iterable[str], least: int = 1) -> "SmilesTokenizer":
        """Number the tokens of molecules, the most frequent first.

        Args:
            molecules: SMILES strings, such as the lines of a file.
            least: leave out tokens that occur less often.

        Raises:
            UserError: naming a string with characters that belong to no token.
        """
        counts = Counter(token for smiles in molecules for token in split(smiles))
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        kept = [token for token, count in ordered if count >= least]
        return cls([*SPECIALS, *kept, UNKNOWN])

    @classmethod
    def from_file(cls, path: Path) -> "SmilesTokenizer":
        """Read a vocabulary: a token a line, or JSON that maps tokens to their numbers.

        Raises:
            UserError: naming the file and what is wrong in it.
        """
        if path.suffix == ".json":
            numbers = read_json(path)
            if not isinstance(numbers, Mapping) or sorted(map(str, numbers.values())) != sorted(
                map(str, range(len(numbers)))
            ):
                raise UserError(f"{path}: must map each token to its number, from 0 on")
            tokens = sorted(numbers, key=lambda token: int(numbers[token]))
        else:
            tokens = read_text(path).splitlines()
        check(tokens, str(path))
        return cls(tokens)

    def encode(self, smiles: str, closed: bool = True) -> NDArray[np.int64]:
        """Give the numbers (L,) of a string's tokens, between begin and end.

        Args:
            smiles: the string; tokens that the vocabulary has not become :attr:`unknown`.
            closed: False leaves the end out, for a string that is to be gone on with.

        Raises:
            UserError: naming characters that belong to no token.
        """
        ids = [self.begin, *(self._ids.get(token, self.unknown) for token in split(smiles))]
        return np.array([*ids, self.end] if closed else ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Join tokens up to the end; begin, padding and mask are left out.

        :data:`UNKNOWN` is written out, so that no chemist's tool takes the string for a molecule.
        """
        tokens = []
        for number in ids:
            if number == self.end:
                break
            if number >= len(SPECIALS):
                tokens.append(self.tokens[number])
        return "".join(tokens)

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary."""
        return {"tokens": list(self.tokens)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "SmilesTokenizer":
        """Take what :meth:`to_json` gave."""
        return cls(saved["tokens"])


def check(tokens: Sequence[str], source: str) -> None:
    """Check the form of a vocabulary; ``source`` names it in errors.

    Raises:
        UserError: naming the first token that is not in its place, no token, or there twice.
    """
    for number, special in enumerate(SPECIALS):
        found = tokens[number] if number < len(tokens) else "nothing"
        if found != special:
            raise UserError(f"{source}: token {number} is {found!r} and must be {special!r}")
    if tokens[-1] != UNKNOWN:
        raise UserError(f"{source}: the last token is {tokens[-1]!r} and must be {UNKNOWN!r}")
    seen = set()
    for number, token in enumerate(tokens):
        if token in seen:
            raise UserError(f"{source}: token {number}, {token!r}, is there twice")
        if len(SPECIALS) <= number < len(tokens) - 1 and not PATTERN.fullmatch(token):
            raise UserError(f"{source}: token {number}, {token!r}, is none of a SMILES string")
        seen.add(token)
