"""Flows whose attacks can be told, and a data module that holds them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from core.data_module import DataModule, whole_batch
from domains.security.baselines import fitted
from domains.security.flows import FlowBatch, FlowTable
from domains.security.preprocessing import FlowPreprocessing
from domains.security.specification import FlowSpecification

ATTACKS = ("normal", "flood", "probe", "worm")
PROTOCOLS, STATES = ("tcp", "udp", "icmp", "gre"), ("S0", "SF", "REJ")
WINDOW = 3


def table(count, seed, kinds=(0, 1, 2)) -> FlowTable:
    """Make flows of a size that tells a flood, and of a service that tells a probe."""
    rng = np.random.default_rng(seed)
    attacks = rng.choice(kinds, count).astype(np.int64)
    numeric = rng.normal(0, 1, (count, 2)).astype(np.float32)
    numeric[:, 0] += 3 * (attacks == 1)
    codes = rng.integers(1, 4, (count, 2))
    codes[attacks == 2, 0] = 4
    return FlowTable(numeric, codes, (attacks > 0).astype(np.int64), attacks)


def preprocessing(**given) -> FlowPreprocessing:
    """Scale and code two numbers from 0 to 100 and two levels."""
    specification = FlowSpecification(
        numeric=("size", "rate"), categorical=("proto", "state"), source="host", time="time"
    )
    zeros, most = np.zeros(2, np.float32), np.full(2, 100, np.float32)
    classes = ("benign", "attack")
    fitted_to = specification, zeros, most, (PROTOCOLS, STATES), np.zeros(2)
    return FlowPreprocessing(*fitted_to, classes, WINDOW, **given)


class Flows:
    """Windows of a table."""

    def __init__(self, flows: FlowTable) -> None:
        self.flows = flows

    def __len__(self) -> int:
        return len(self.flows.labels) - WINDOW + 1

    def __getitems__(self, places: Sequence[int]) -> FlowBatch:
        ends = torch.as_tensor(places) + WINDOW - 1
        rows = ends[:, None] + torch.arange(1 - WINDOW, 1)
        numeric, codes, labels, attacks = map(torch.from_numpy, self.flows)
        return FlowBatch(numeric[rows], codes[rows], labels[ends], attacks[ends], ends)

    def judged(self) -> FlowTable:
        return FlowTable(*(part[WINDOW - 1 :] for part in self.flows))


class FlowCase(DataModule):
    """Three tables; the test has worms, which training lacks."""

    collate = staticmethod(whole_batch)
    attacks = ATTACKS
    tested_attacks = ATTACKS
    new_attacks = ("worm",)

    def __init__(self, classes=("benign", "attack"), **given) -> None:
        super().__init__(**given)
        self.class_names = classes

    def setup(self, stage=None) -> None:
        parts = table(2000, 0), table(600, 1), table(601, 2, kinds=(0, 0, 0, 1, 2, 3))
        if len(self.class_names) > 2:
            parts = tuple(part._replace(labels=part.attacks) for part in parts)
        self.train_set, self.val_set, self.test_set = map(Flows, parts)

    def baselines(self):
        names, parts = ("train", "val", "test"), (self.train_set, self.val_set, self.test_set)
        judged = {name: part.judged() for name, part in zip(names, parts, strict=True)}
        rows = np.arange(len(self.test_set)) + WINDOW - 1
        return fitted(judged, rows, len(self.class_names), self.seed)


class LastFlow(nn.Module):
    """A linear map of the judged flow."""

    def __init__(self, classes=2) -> None:
        super().__init__()
        self.classes = classes
        self.encode = Encode()
        self.head = nn.Linear(2 + 2 * 6, 1 if classes == 2 else classes)

    def forward(self, numeric, codes):
        return self.head(self.encode(numeric, codes)[:, -1])


class Encode(nn.Module):
    """Numbers beside one-hot levels."""

    def forward(self, numeric, codes):
        marks = torch.nn.functional.one_hot(codes, 6).flatten(2).to(numeric.dtype)
        return torch.cat([numeric, marks], 2)
