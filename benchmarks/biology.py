"""Generation by linear attention beside full attention with a cache of keys and values.

``python benchmarks/biology.py [small] [published] [--output FOLDER]``. Both sides have the same
layers and so the same number of parameters, at random: ``small`` 3.65 million and 32 sequences at
a time, ``published`` 46.8 million and 8. The other side is a GPT in plain torch, whose cache is
laid out once for all tokens; ours keeps sums of one size. Each side draws 64, 256 or 1,024 tokens,
always the most probable one, and never ends. The sides take turns, there and back, in one process,
on one thread; seconds are process time and medians of the rounds. The note tells the memory that is
kept between two tokens. A ratio is the other side's time over ours.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import measure
import torch
import torch.nn.functional as F
from measure import Row
from torch import Tensor, nn

from domains.biology.networks.gp_molformer import GPMoLFormer, gp_molformer_small

ROUNDS = {64: 5, 256: 3, 1024: 1}
"""Tokens drawn, and how often that is timed."""
SAME = 1e-4  # largest difference of logits between the recurrent and the parallel form


class Cache(NamedTuple):
    """Keys and values (depth, B, heads, L, H), of which the first ``count`` are filled."""

    keys: Tensor
    values: Tensor
    count: int


class GPT(nn.Module):
    """The layers of a GP-MoLFormer with softmax attention in place of the linear one."""

    def __init__(self, network: GPMoLFormer, longest: int) -> None:
        super().__init__()
        self.network = network
        self.longest = longest
        self.places = nn.Embedding(longest, network.width)

    def begin(self, batch: int) -> Cache:
        """Lay out the cache."""
        network = self.network
        shape = (network.depth, batch, network.heads, self.longest, network.width // network.heads)
        return Cache(torch.zeros(shape), torch.zeros(shape), 0)

    def step(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Score what follows one token (B,) more."""
        network, end = self.network, cache.count + 1
        x = network.embed(ids[:, None]) + self.places.weight[cache.count]
        for number, layer in enumerate(network.layers):
            attention = layer.attention
            split = (len(ids), 1, network.heads, -1)
            parts = (attention.query, attention.key, attention.value)
            q, k, v = (part(x).view(split).transpose(1, 2) for part in parts)
            cache.keys[number, :, :, cache.count] = k[:, :, 0]
            cache.values[number, :, :, cache.count] = v[:, :, 0]
            mixed = F.scaled_dot_product_attention(
                q, cache.keys[number, :, :, :end], cache.values[number, :, :, :end]
            )
            x = layer.norm_attention(x + attention.out(mixed.transpose(1, 2).flatten(2)))
            x = layer.norm_inner(x + layer.contract(F.gelu(layer.expand(x))))
        return network.head(network.norm(x)[:, 0]), cache._replace(count=end)


def draw(network: GPMoLFormer | GPT, batch: int, tokens: int) -> None:
    """Draw the most probable tokens, one after the other."""
    ids = torch.zeros(batch, dtype=torch.long)
    with torch.no_grad():
        state = network.begin(batch) if isinstance(network, GPT) else None
        for _ in range(tokens):
            logits, state = network.step(ids, state)  # type: ignore[arg-type]
            ids = logits.argmax(1)


def check(network: GPMoLFormer) -> float:
    """Hold the recurrent form to the parallel one; give the largest difference of logits."""
    ids = torch.randint(4, network.vocabulary, (2, 200))
    state, gap = None, 0.0
    with torch.no_grad():
        whole = network(ids)
        for place, token in enumerate(ids.unbind(1)):
            logits, state = network.step(token, state)
            gap = max(gap, float((logits - whole[:, place]).abs().max()))
    assert gap <= SAME, f"the recurrent and the parallel form differ by {gap}"
    return gap


def generation(build: Callable[[], GPMoLFormer], batch: int) -> list[Row]:
    """Time both sides at each number of tokens."""
    network = build().eval()
    gap = check(network)
    size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    cell = network.features * (network.width // network.heads + 1)
    ours = 4 * batch * network.depth * network.heads * cell / 2**20
    rows = []
    for tokens, rounds in ROUNDS.items():
        sides = {"ours": network, "GPT": GPT(network, tokens).eval()}
        draw(sides["GPT"], batch, 2)  # what is done once is not counted
        works: Mapping[str, Callable[[], None]] = {
            name: partial(draw, side, batch, tokens) for name, side in sides.items()
        }
        seconds = measure.alternate(works, rounds)
        kept = 8 * batch * network.depth * network.width * tokens / 2**20
        note = f"{ours:.0f} and {kept:.0f} MB kept; forms differ by {gap:.0e}"
        name = f"{size:.1f} M, {batch} x {tokens} tokens"
        times = (seconds["ours"], seconds["GPT"])
        rows.append(Row(name, "full attention", times, None, note))
    return rows


if __name__ == "__main__":
    parts = {
        "small": partial(generation, gp_molformer_small, 32),
        "published": partial(generation, GPMoLFormer, 8),
    }
    measure.main(parts, "biology.png")
