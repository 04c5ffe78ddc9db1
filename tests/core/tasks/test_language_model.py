"""The language-model task beside counts by hand, and in a run of its own."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from core.data_module import DataModule, whole_batch
from core.sampling import Choice, sample
from core.tasks.language_model import UNTOLD, CausalLanguageModel, targets, token_batch

TOKENS = 6


class Next(nn.Module):
    """Scores by the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, TOKENS)

    def forward(self, ids, lengths):
        assert len(lengths) == len(ids)
        return self.table(ids)


class Cycle:
    """Sequences 0 3 4 5 3 4 5 ... of several lengths, ended by 1."""

    def __init__(self, count) -> None:
        self.sequences = [
            np.array([0, *(3 + (place % 3) for place in range(2 + row % 5)), 1])
            for row in range(count)
        ]

    def __len__(self):
        return len(self.sequences)

    def __getitems__(self, rows):
        return token_batch([self.sequences[row] for row in rows], rows, 2)


class CycleData(DataModule):
    collate = staticmethod(whole_batch)

    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = Cycle(64), Cycle(20), Cycle(15)

    @property
    def facts(self):
        return {"dataset": "cycle"}


def batch(begins=None):
    sequences = [np.array([0, 3, 4, 1]), np.array([0, 5]), np.array([0, 3, 1])]
    return token_batch(sequences, [7, 8, 9], 2, begins)


def test_sequences_are_padded_at_the_end():
    made = batch()
    assert made.ids.tolist() == [[0, 3, 4, 1], [0, 5, 2, 2], [0, 3, 1, 2]]
    assert made.lengths.tolist() == [4, 2, 3]
    assert made.rows.tolist() == [7, 8, 9]


def test_targets_are_the_next_tokens_from_the_given_one_on():
    u = UNTOLD
    assert targets(batch()).tolist() == [[3, 4, 1], [5, u, u], [3, 1, u]]
    assert targets(batch([2, 1, 3])).tolist() == [[u, 4, 1], [5, u, u], [u, u, u]]


def test_the_loss_is_the_mean_surprise_of_a_token():
    torch.manual_seed(0)
    task = CausalLanguageModel(Next())
    share = task.network.table.weight.detach().softmax(1)
    pairs = [(0, 3), (3, 4), (4, 1), (0, 5), (0, 3), (3, 1)]
    want = -sum(math.log(share[a, b]) for a, b in pairs) / 6
    step = task.step(batch())
    step = step._replace(loss=step.loss.detach())
    assert float(step.loss) == pytest.approx(want, rel=1e-5)
    assert int(task.weight(step, batch())) == 6
    items = task.items(step, batch())
    assert items["id"].tolist() == [7, 8, 9]
    assert items["tokens"].tolist() == [3, 1, 2]
    assert float(items["log_likelihood"].sum()) == pytest.approx(-6 * want, rel=1e-5)
    wrong = task.mistakes(step, batch())
    assert float(wrong[0, 0]) == pytest.approx(1 - float(share[0, 3]), rel=1e-5)
    assert wrong.isnan().tolist() == [[False] * 3, [False, True, True], [False, False, True]]


def test_a_batch_in_which_nothing_is_told_has_no_loss():
    task = CausalLanguageModel(Next())
    step = task.step(batch([4, 4, 4]))
    step.loss.backward()
    assert float(step.loss.detach()) == 0
    assert int(task.weight(step, batch([4, 4, 4]))) == 0


def trained(folder, **data):
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=12,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        accelerator="cpu",
    )
    task = CausalLanguageModel(Next(), partial(torch.optim.Adam, lr=0.3))
    module = CycleData(batch_size=16, **data)
    trainer.fit(task, module)
    return task, trainer.test(task, module, verbose=False)[0]


def test_learns_a_cycle_and_no_batch_changes_the_perplexity(tmp_path):
    task, scores = trained(tmp_path)
    assert scores["test/perplexity"] == pytest.approx(math.exp(scores["test/loss"]), rel=1e-5)
    told = after = 0.0
    share = task.network.table.weight.detach().log_softmax(1)
    for sequence in Cycle(15).sequences:
        for a, b in pairwise(sequence):
            told, after = told - float(share[a, b]), after + 1
    assert scores["test/perplexity"] == pytest.approx(math.exp(told / after), rel=1e-4)
    assert scores["test/perplexity"] < 2
    _, parts = trained(tmp_path, eval_batch_size=4)
    assert parts["test/perplexity"] == pytest.approx(scores["test/perplexity"], rel=1e-5)
    best = Choice(temperature=0.0, never=(1,))
    drawn = sample(task.network, [torch.tensor([0])], end=1, longest=6, choice=best)
    assert drawn.tokens[0].tolist() == [3, 4, 5, 3, 4, 5]
