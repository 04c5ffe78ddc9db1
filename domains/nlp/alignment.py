"""From words to the pieces of a tokenizer and back, without losing a word.

Each word is tokenised by itself, so no piece is ever taken for another word's, whatever marks and
joiners the script has. A word that gives no piece (a variation selector, a control character, an
empty cell) becomes the unknown token. The first piece of a word stands for it.

A sentence that is too long is read through windows of which each shares a third with the next; a
word belongs to the one window in which it is farthest from where the sentence was cut.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domains.nlp.tokens import Encoded


class Pieces(NamedTuple):
    """A sentence of N words as n pieces: their ``ids`` (n,), and where each word begins (N,)."""

    ids: NDArray[np.int32]
    first: NDArray[np.int32]


class Window(NamedTuple):
    """Pieces ``start`` to ``stop`` of a sentence, and the words that are judged there.

    These are ``first_word`` to ``last_word``, not included; both ``stop`` and ``last_word`` may
    be the sentence's own end.
    """

    start: int
    stop: int
    first_word: int
    last_word: int


class WordEncoder:
    """Turn words into pieces.

    Args:
        tokenizer: a fast tokenizer of transformers, with a token for padding, which stands for what
            is unknown where it has no token for that.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        encoded = tokenizer([["a"]], is_split_into_words=True, return_special_tokens_mask=True)
        ids, special = encoded["input_ids"][0], encoded["special_tokens_mask"][0]
        own = [place for place, mark in enumerate(special) if not mark]
        self.before = np.array(ids[: own[0]], np.int32)
        self.after = np.array(ids[own[-1] + 1 :], np.int32)
        # byte-level tokenizers tell a word within a sentence by the space before it
        self._lead = " " if self._ids([" a"]) != self._ids(["a"]) else ""
        self._known: dict[str, NDArray[np.int32]] = {}

    @property
    def specials(self) -> int:
        """How many tokens stand around every text."""
        return len(self.before) + len(self.after)

    def __call__(self, sentences: Sequence[Sequence[str]]) -> list[Pieces]:
        """Encode sentences; one without a word has no piece."""
        self._learn({word for words in sentences for word in words} - self._known.keys())
        return [self._joined(words) for words in sentences]

    def framed(self, pieces: Pieces, window: Window) -> Encoded:
        """Give a window's pieces between the special tokens."""
        ids = np.concatenate([self.before, pieces.ids[window.start : window.stop], self.after])
        return Encoded(ids, np.zeros(len(ids), np.int8))

    def places(self, pieces: Pieces, window: Window) -> NDArray[np.int64]:
        """Give where the first pieces of a window's own words stand in :meth:`framed`."""
        own = pieces.first[window.first_word : window.last_word].astype(np.int64)
        return own - window.start + len(self.before)

    def _joined(self, words: Sequence[str]) -> Pieces:
        parts = [self._known[word] for word in words]
        sizes = np.fromiter((len(part) for part in parts), np.int32, len(parts))
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return Pieces(ids, np.cumsum(sizes, dtype=np.int32) - sizes)

    def _learn(self, words: Iterable[str]) -> None:
        new = sorted(words)
        if not new:
            return
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            unknown = self.tokenizer.pad_token_id
        for word, ids in zip(new, self._ids([self._lead + word for word in new]), strict=True):
            self._known[word] = np.array(ids or [unknown], np.int32)

    def _ids(self, words: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            [[word] for word in words],
            is_split_into_words=True,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def windows(pieces: Pieces, capacity: int) -> list[Window]:
    """Cut a sentence into windows of at most ``capacity`` pieces, each with words of its own.

    Every word belongs to exactly one window, in the order of the sentence. The windows of one
    sentence are of one length.
    """
    count = len(pieces.ids)
    starts = np.array(_starts(count, capacity))
    stops = np.minimum(starts + capacity, count)
    borders = (stops[:-1] - 1 + starts[1:]) // 2  # the last piece that is better off before
    words = np.searchsorted(pieces.first, borders, side="right")
    ends = [0, *words.tolist(), len(pieces.first)]
    return [
        Window(int(start), int(stop), first, last)
        for start, stop, first, last in zip(starts, stops, ends, ends[1:], strict=False)
        if first < last
    ]


def _starts(count: int, capacity: int) -> list[int]:
    if count <= capacity:
        return [0]
    return [*range(0, count - capacity, capacity - capacity // 3), count - capacity]
