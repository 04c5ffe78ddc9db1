"""What FlowTransformer learns on drawn flows: where context decides, and where it does not."""

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional import accuracy, f1_score

from domains.security.networks.flow_transformer import FlowTransformer

KINDS = torch.tensor([[0.2, 0.3, 0.1], [0.7, 0.2, 0.8], [0.4, 0.9, 0.5], [0.9, 0.6, 0.2]])
"""The middles of four kinds of ordinary flows."""


def flows(kinds, generator):
    """Draw flows (B, W, 3) and codes (B, W, 1) of given kinds (B, W)."""
    numeric = KINDS[kinds] + 0.05 * torch.randn(*kinds.shape, 3, generator=generator)
    return numeric, kinds[..., None] % 2


def bursts(count, generator):
    """The flows of an attack are of one kind, whichever that is; one alone tells nothing."""
    labels = torch.arange(count) % 2
    kinds = torch.randint(0, len(KINDS), (count, 8), generator=generator)
    alike = torch.randint(0, len(KINDS), (count, 1), generator=generator).expand(-1, 8)
    return *flows(torch.where(labels[:, None] == 1, alike, kinds), generator), labels


def last_row(count, generator):
    """Only the last flow tells; those before it are arbitrary flows, attacks among them."""
    kinds = torch.randint(0, len(KINDS), (count, 8), generator=generator)
    return *flows(kinds, generator), (kinds[:, -1] > 1).long()


def learnt(draw, head="last", window=8, steps=300):
    """Train as published on balanced batches; give F1 and balanced accuracy on new windows."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = FlowTransformer(3, [2], window, head=head)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7)
    for _ in range(steps):
        numeric, codes, labels = draw(128, generator)
        logits = network(numeric[:, -window:], codes[:, -window:])[:, 0]
        F.binary_cross_entropy_with_logits(logits, labels.float()).backward()
        optimizer.step()
        optimizer.zero_grad()
    numeric, codes, labels = draw(4096, generator)
    with torch.no_grad():
        logits = network.eval()(numeric[:, -window:], codes[:, -window:])[:, 0]
    balanced = accuracy(logits > 0, labels, "multiclass", num_classes=2, average="macro")
    return float(f1_score(logits, labels, "binary")), float(balanced)


@pytest.mark.slow
def test_context_is_used_where_it_decides():
    f1, _ = learnt(bursts)
    _, alone = learnt(bursts, window=1)
    assert f1 > 0.95
    assert 0.45 < alone < 0.55


@pytest.mark.slow
@pytest.mark.parametrize("head", ["average", "cls"])
def test_heads_that_do_not_know_the_last_flow_fall_behind(head):
    """Without positions a mean, or a row that looks at all flows alike, cannot find the target."""
    last, _ = learnt(last_row, "last", steps=100)
    behind, balanced = learnt(last_row, head, steps=200)
    assert last > 0.99
    assert behind < 0.75
    assert balanced < 0.7  # the share of attacks among the flows tells as much: 0.64
