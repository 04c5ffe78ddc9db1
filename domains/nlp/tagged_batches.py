"""Batches of tagged sentences: tokens in windows, and where each word stands in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from domains.nlp.alignment import Pieces, Window, WordEncoder, windows
from domains.nlp.spans import NO_TAG
from domains.nlp.tokens import Tokens, pad

MOST_WINDOWS = 256
"""Windows that a network sees at a time when it does not learn."""


class TaggedBatch(NamedTuple):
    """B sentences, or windows of such, of at most N words.

    Attributes:
        tokens: W windows (W, L).
        places: where the first piece of each word stands among the W L tokens (B, N); 0 on padding.
        labels: the label of each word for each of H heads (B, N, H); ``NO_TAG`` where there is
            none, and on padding.
        lengths: how many words each has (B,).
        rows: the number of the sentence (B,).
    """

    tokens: Tokens
    places: Tensor
    labels: Tensor
    lengths: Tensor
    rows: Tensor


class TaggedSet(Dataset[TaggedBatch]):
    """Sentences as items with all of their windows, or each window as an item with its own words.

    Args:
        encoder: gives pieces their special tokens.
        pieces: the pieces of S sentences.
        labels: the labels (N, H) of each.
        max_length: the most tokens of a window, special ones included.
        apart: each window is an item, as training takes them.
    """

    def __init__(
        self,
        encoder: WordEncoder,
        pieces: Sequence[Pieces],
        labels: Sequence[NDArray[np.int64]],
        max_length: int,
        apart: bool = False,
    ) -> None:
        self.encoder = encoder
        self.pieces = pieces
        self.labels = labels
        self.items: list[tuple[int, list[Window]]] = []
        for row, sentence in enumerate(pieces):
            cut = windows(sentence, max_length - encoder.specials)
            self.items += [(row, [window]) for window in cut] if apart else [(row, cut)]
        self.items = [item for item in self.items if item[1]]  # a sentence may be empty

    def __len__(self) -> int:
        """Count the items."""
        return len(self.items)

    @property
    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens in the longest window of each item, and how many windows it has."""
        extra = self.encoder.specials
        tokens = [max(w.stop - w.start for w in cut) + extra for _, cut in self.items]
        return np.array(tokens, np.int64), np.array([len(cut) for _, cut in self.items], np.int64)

    def __getitem__(self, index: int) -> TaggedBatch:
        """Give one item as a batch."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> TaggedBatch:
        """Put items together."""
        items = [self.items[index] for index in indices]
        framed = [self.encoder.framed(self.pieces[row], w) for row, cut in items for w in cut]
        tokens = pad(framed, self.encoder.tokenizer.pad_token_id)
        length = tokens.ids.shape[1]
        counts = [sum(w.last_word - w.first_word for w in cut) for _, cut in items]
        places = np.zeros((len(items), max(counts)), np.int64)
        heads = self.labels[items[0][0]].shape[1]
        labels = np.full((*places.shape, heads), NO_TAG, np.int64)
        number = 0
        for at, (row, cut) in enumerate(items):
            begin = 0
            for window in cut:
                end = begin + window.last_word - window.first_word
                own = self.encoder.places(self.pieces[row], window)
                places[at, begin:end] = number * length + own
                labels[at, begin:end] = self.labels[row][window.first_word : window.last_word]
                begin, number = end, number + 1
        return TaggedBatch(
            tokens,
            torch.from_numpy(places),
            torch.from_numpy(labels),
            torch.tensor(counts),
            torch.tensor([row for row, _ in items]),
        )


def of_words(network: nn.Module, batch: TaggedBatch) -> Tensor:
    """Give a network's outputs (B, N, K) at the first piece of each word.

    Without gradients many windows go through it part by part, so that no sentence is too long.
    """
    tokens = batch.tokens
    most = len(tokens.ids) if torch.is_grad_enabled() else MOST_WINDOWS
    parts = zip(*(torch.split(part, most) for part in tokens), strict=True)
    outputs = torch.cat([network(*part) for part in parts])  # (W, L, K)
    return outputs.flatten(0, 1)[batch.places]
