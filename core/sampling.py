"""Draw sequences from a causal language model, token by token.

A network that has ``step(ids, state, lengths) -> (logits, state)`` is asked for each token alone;
``ids`` are the prompts (B, L), padded at the end to their ``lengths`` (B,), and then one token a
sequence (B,), with no lengths. The tensors in its state have the sequences on their first axis. Any
other network reads all tokens again for each one, as ``network(ids, lengths=lengths)``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core.batch_plan import mix_seed
from core.early_exit.rows import take
from core.errors import UserError

KEPT = 0.875
"""Sequences that have ended are dropped as soon as no more than this share goes on."""


class Sampled(NamedTuple):
    """What was drawn for B prompts.

    Attributes:
        tokens: one (n,) a prompt, without the prompt and without the end.
        ended: (B,) whether the end was drawn, or the sequence cut at the greatest length.
    """

    tokens: list[Tensor]
    ended: Tensor


class Choice(NamedTuple):
    """How the next token is drawn from its probabilities.

    Attributes:
        temperature: divides the logits; 0 always takes the most probable token.
        top_k: draw from so many of the most probable tokens alone; None from all.
        top_p: draw from the fewest tokens that together have this probability; None from all.
        never: tokens that are never drawn, such as padding.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    never: tuple[int, ...] = ()

    def check(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the one that is out of range.
        """
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie above 0, up to 1")

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw tokens (B,) from ``logits`` (B, V), each by a number ``uniform`` (B,) in (0, 1]."""
        logits = logits.float()
        if self.never:
            logits = logits.index_fill(
                1, torch.tensor(self.never, device=logits.device), -torch.inf
            )
        if not self.temperature:
            return logits.argmax(1)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            best = logits.topk(self.top_k)
            logits = torch.full_like(logits, -torch.inf).scatter(1, best.indices, best.values)
        share = logits.softmax(1)
        if self.top_p is not None:
            ordered, order = share.sort(dim=1, descending=True, stable=True)
            beyond = ordered.cumsum(1) - ordered >= self.top_p
            share = share.scatter(1, order, ordered.masked_fill(beyond, 0))
        below = share.cumsum(1)
        # above zero, so a token without probability is never the first to reach it
        return torch.searchsorted(below, uniform[:, None] * below[:, -1:]).squeeze(1)


@torch.no_grad()
def sample(
    network: nn.Module,
    prompts: Sequence[Tensor],
    *,
    end: int,
    longest: int,
    choice: Choice | None = None,
    seed: int = 0,
    first: int = 0,
) -> Sampled:
    """Go on from prompts until the end is drawn.

    A sequence depends on the seed and on its number alone, up to rounding: not on the others that
    are drawn beside it.

    Args:
        network: a causal language model; it is put into eval mode meanwhile.
        prompts: (n,) tokens each, at least one.
        end: the token that ends a sequence.
        longest: the most tokens drawn for a prompt.
        choice: how tokens are drawn; None draws from all by their probabilities.
        seed: of the draws.
        first: the number of the first sequence, for a large sample that is drawn in parts.

    Raises:
        UserError: if a number of ``choice`` is out of range, or a prompt or their list is empty.
    """
    choice = choice or Choice()
    choice.check()
    if not prompts or not all(map(len, prompts)):
        raise UserError("each prompt needs a token to begin from, and there must be one prompt")
    device = next(network.parameters()).device
    chance = torch.from_numpy(
        np.stack([_uniform(seed, first + row, longest) for row in range(len(prompts))])
    ).to(device, torch.float32)
    drawn = torch.full((len(prompts), longest), end, device=device)
    was = network.training
    network.eval()
    try:
        _fill(network, prompts, drawn, chance, end, choice)
    finally:
        network.train(was)
    ends = (drawn == end).int()
    ended = ends.any(1)
    lengths = torch.where(ended, ends.argmax(1), longest)
    pairs = zip(drawn.cpu(), lengths.tolist(), strict=True)
    return Sampled([row[:length].clone() for row, length in pairs], ended.cpu())


def _fill(
    network: nn.Module,
    prompts: Sequence[Tensor],
    drawn: Tensor,
    chance: Tensor,
    end: int,
    choice: Choice,
) -> None:
    """Write what is drawn into ``drawn`` (B, L), which holds the end everywhere."""
    longest = drawn.shape[1]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=drawn.device)
    ids = pad_sequence(list(prompts), batch_first=True).to(drawn.device)
    reader = (_Stepping if hasattr(network, "step") else _Rereading)(network, ids, lengths, longest)
    rows = torch.arange(len(prompts), device=drawn.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    logits = reader.begin()
    for place in range(longest):
        token = choice.draw(logits, chance[rows, place])
        token = torch.where(going, token, end)
        drawn[rows, place] = token
        going &= token != end
        left = int(going.sum())
        if not left or place + 1 == longest:
            return
        if left <= KEPT * len(rows):
            kept = going.nonzero().squeeze(1)
            reader.keep(kept)
            rows, token, going = rows[kept], token[kept], going[kept]
        logits = reader.next(token)


class _Stepping:
    """Ask a network that keeps a state for one token after the other."""

    def __init__(self, network: Any, ids: Tensor, lengths: Tensor, longest: int) -> None:
        self.network = network
        self.ids = ids
        self.lengths = lengths
        self.rows = len(ids)
        self.state: Any = None

    def begin(self) -> Tensor:
        """Read the prompts."""
        logits, self.state = self.network.step(self.ids, None, self.lengths)
        return _at(logits, self.lengths)

    def next(self, token: Tensor) -> Tensor:
        """Read one token a sequence."""
        logits, self.state = self.network.step(token, self.state)
        return logits  # type: ignore[no-any-return]

    def keep(self, kept: Tensor) -> None:
        """Go on with some sequences alone."""
        self.state = take(self.state, kept, self.rows)
        self.rows = len(kept)


class _Rereading:
    """Ask a network that keeps nothing, by all tokens again each time."""

    def __init__(self, network: Any, ids: Tensor, lengths: Tensor, longest: int) -> None:
        self.network = network
        self.ids = F.pad(ids, (0, longest))
        self.lengths = lengths

    def begin(self) -> Tensor:
        """Read the prompts."""
        logits = self.network(self.ids[:, : int(self.lengths.max())], lengths=self.lengths)
        return _at(logits, self.lengths)

    def next(self, token: Tensor) -> Tensor:
        """Read one token more a sequence."""
        self.ids.scatter_(1, self.lengths[:, None], token[:, None])
        self.lengths = self.lengths + 1
        return self.begin()

    def keep(self, kept: Tensor) -> None:
        """Go on with some sequences alone."""
        self.ids, self.lengths = self.ids[kept], self.lengths[kept]


def _at(logits: Tensor, lengths: Tensor) -> Tensor:
    """Take the logits (B, V) of what follows the last token, from (B, L, V)."""
    return logits[torch.arange(len(logits), device=logits.device), lengths - 1]


def _uniform(seed: int, number: int, count: int) -> Any:
    """Draw so many numbers in (0, 1] for a sequence."""
    return 1 - np.random.default_rng(mix_seed(seed, number)).random(count)
