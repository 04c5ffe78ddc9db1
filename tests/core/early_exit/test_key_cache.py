"""A decoder with exits writes as it does without a cache, or says that its cache lacks layers."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from core.early_exit.stages import ExitController
from core.errors import UserError

TOKENS = torch.randint(0, 50, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=50, **sizes, **ends)).eval()
    with torch.no_grad():
        network.transformer.wte.weight *= 20
    return network


def written(network, exits, depths, cached):
    """Give the logits of each next token; the tokens are given."""
    logits, cache = [], None
    for length, depth in zip(range(6, 11), depths, strict=True):
        own = TOKENS[:, :length] if cache is None else TOKENS[:, length - 1 : length]
        with torch.no_grad(), exits.depth(depth):
            told = network(own, past_key_values=cache, use_cache=cached)
        cache = told.past_key_values if cached else None
        logits.append(told.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
@pytest.mark.parametrize("depth", [2, 4])
def test_one_depth_for_all_tokens_needs_no_more(decoder, depth):
    exits = ExitController(decoder)
    plain, cached = (written(decoder, exits, [depth] * 5, kept) for kept in (False, True))
    torch.testing.assert_close(cached, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
@pytest.mark.parametrize(
    "depths",
    [
        [2, 4, 4, 4, 4],
        [4, 2, 3, 3, 3],
        [torch.tensor(each) for each in ([1, 3, 4], [1, 4, 3], [1, 3, 4], [1, 3, 4], [4, 4, 4])],
    ],
)
def test_a_layer_that_was_skipped_is_not_asked_from_a_cache(decoder, depths):
    exits = ExitController(decoder)
    assert written(decoder, exits, depths, False).isfinite().all()
    with pytest.raises(UserError, match="generate with use_cache=False"):
        written(decoder, exits, depths, True)
