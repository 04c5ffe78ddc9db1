"""Texts into tokens: cut, or in windows, and all of them in a few flat arrays."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.array_cache import cached
from core.errors import UserError
from domains.nlp.tokenizer import fingerprint
from domains.nlp.tokens import Encoded

LongInput = Literal["truncate", "head_tail", "window"]
KEPT = 2_000
"""Texts from which on their tokens are kept in the user's cache folder."""
CHUNK = 10_000
"""Texts that are tokenised at a time."""


class EncodedTexts(NamedTuple):
    """N texts as W windows of T tokens in all; a text that fits is one window.

    ``ids`` (T,) and ``types`` (T,) are those of all windows, ``starts`` (W + 1,) where each begins,
    ``firsts`` (N + 1,) the first window of each text, and ``longer`` (1,) how many texts were
    longer than a window.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int8]
    starts: NDArray[np.int64]
    firsts: NDArray[np.int64]
    longer: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.firsts) - 1

    def windows(self, text: int) -> list[Encoded]:
        """Give the windows of one text."""
        bounds = self.starts[self.firsts[text] : self.firsts[text + 1] + 1].tolist()
        return [Encoded(self.ids[a:b], self.types[a:b]) for a, b in pairwise(bounds)]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Give the tokens (N,) in the longest window of each text."""
        return np.maximum.reduceat(np.diff(self.starts), self.firsts[:-1])

    @property
    def rows(self) -> NDArray[np.int64]:
        """Give the windows (N,) of each text."""
        return np.diff(self.firsts)


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    max_length: int = 128,
    long_input: LongInput = "truncate",
) -> EncodedTexts:
    """Tokenise texts, or pairs of texts, into windows of at most ``max_length`` tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        texts: N texts.
        pairs: N second texts.
        max_length: the most tokens of a window, the special ones included.
        long_input: what to do about a longer text: ``truncate`` keeps its beginning,
            ``head_tail`` its beginning and its end (Sun et al., How to Fine-Tune BERT for Text
            Classification?, 2019), ``window`` all of it, in windows that overlap by a quarter. Of
            pairs the longer text is cut, down to the other's length first; the second one is put
            into windows.

    Raises:
        UserError: if ``max_length`` has no room for a token beside the special ones, or for windows
            of a second text.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    if max_length <= special:
        raise UserError(
            f"data.max_length={max_length} has no room beside the {special} special tokens"
        )

    def make() -> dict[str, NDArray[Any]]:
        return _encode(tokenizer, texts, pairs, max_length, long_input)._asdict()

    if len(texts) < KEPT:
        return EncodedTexts(**make())
    settings = [fingerprint(tokenizer), max_length, long_input]
    return EncodedTexts(**cached(["tokens", *settings, list(texts), pairs and list(pairs)], make))


def _encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    long_input: LongInput,
) -> EncodedTexts:
    ids: list[int] = []
    types: list[int] = []
    starts, firsts, longer = [0], [0], 0
    for window in _windows(tokenizer, texts, pairs, max_length, long_input):
        longer += len(window) > 1 or window[0][2]
        for tokens, kinds, _ in window:
            ids += tokens
            types += kinds
            starts.append(len(ids))
        firsts.append(len(starts) - 1)
    return EncodedTexts(
        np.asarray(ids, np.int32),
        np.asarray(types, np.int8),
        np.asarray(starts, np.int64),
        np.asarray(firsts, np.int64),
        np.asarray([longer], np.int64),
    )


_Window = tuple[list[int], list[int], bool]


def _windows(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    long_input: LongInput,
) -> Iterator[list[_Window]]:
    """Yield the windows of each text, as (ids, types, whether it was cut)."""
    for begin in range(0, len(texts), CHUNK):
        some = list(texts[begin : begin + CHUNK])
        beside = list(pairs[begin : begin + CHUNK]) if pairs is not None else None
        found = tokenizer(some, beside, return_token_type_ids=True, return_attention_mask=False)
        for number, (ids, types) in enumerate(
            zip(found["input_ids"], found["token_type_ids"], strict=True)
        ):
            if len(ids) <= max_length:
                yield [(ids, types, False)]
            elif long_input == "head_tail":
                yield [_without_middle(ids, types, found.sequence_ids(number), max_length)]
            else:
                second = beside[number] if beside is not None else None
                yield _cut(tokenizer, some[number], second, max_length, long_input)


def _cut(
    tokenizer: Any, text: str, pair: str | None, max_length: int, long_input: LongInput
) -> list[_Window]:
    """Cut a text at its end, or into windows."""
    options: Mapping[str, Any] = {"truncation": True}
    if long_input == "window":
        taken = tokenizer.num_special_tokens_to_add(pair=pair is not None)
        if pair is not None:
            taken += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        room = max_length - taken
        if room < 8:
            raise UserError(
                f"data.max_length={max_length}: a first text of {taken} tokens leaves no room for"
                " windows of the second; raise it, or take --data.long_input=truncate"
            )
        which = "only_first" if pair is None else "only_second"
        options = {"truncation": which, "stride": room // 4, "return_overflowing_tokens": True}
    found = tokenizer(
        [text],
        [pair] if pair is not None else None,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
        **options,
    )
    return [(i, t, True) for i, t in zip(found["input_ids"], found["token_type_ids"], strict=True)]


def _without_middle(
    ids: list[int], types: list[int], texts: Sequence[int | None], max_length: int
) -> _Window:
    """Leave out the middle of the longer text, or of both, and no token of the template.

    ``texts`` says of which text each token is: 0, 1 or, of a template, None.
    """
    places = [[n for n, text in enumerate(texts) if text == which] for which in (0, 1)]
    room = max_length - len(ids) + len(places[0]) + len(places[1])
    first, second = len(places[0]), len(places[1])
    kept = min(first, max(room - second, -(-room // 2))), min(second, max(room - first, room // 2))
    left_out: set[int] = set()
    for own, count in zip(places, kept, strict=True):
        begin = -(-count // 2)
        left_out.update(own[begin : begin + len(own) - count])
    keep = [n for n in range(len(ids)) if n not in left_out]
    return [ids[n] for n in keep], [types[n] for n in keep], True
