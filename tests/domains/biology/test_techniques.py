"""Adapters, early exits and freezing take the networks of biology as they take any other."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from core.adapters import LoRA
from core.data_module import DataModule, whole_batch
from core.early_exit.stages import ExitController
from core.early_exit.transform import EarlyExit
from core.freezing.autofreeze import AutoFreeze
from core.sampling import sample
from core.tasks.language_model import CausalLanguageModel, token_batch
from domains.biology.networks.gp_molformer import GPMoLFormer
from domains.biology.networks.teddy import Teddy


class Strings:
    def __init__(self, count) -> None:
        self.strings = [np.array([0, *range(3, 5 + row % 5), 1]) for row in range(count)]

    def __len__(self):
        return len(self.strings)

    def __getitems__(self, rows):
        return token_batch([self.strings[row] for row in rows], rows, 2)


class StringData(DataModule):
    collate = staticmethod(whole_batch)

    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = Strings(32), Strings(8), Strings(8)

    @property
    def facts(self):
        return {"dataset": "strings"}


def molformer():
    torch.manual_seed(0)
    return GPMoLFormer(12, width=32, depth=3, heads=4, inner=32, features=8)


def teddy():
    torch.manual_seed(0)
    heads = [{"name": "", "kind": "single", "labels": ["B", "T"]}]
    return Teddy(50, heads, width=32, depth=3, attention_heads=4, inner=48, positions=20)


def fitted(network, *callbacks):
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        accelerator="cpu",
        callbacks=list(callbacks),
    )
    task, data = CausalLanguageModel(network), StringData(batch_size=8)
    trainer.fit(task, data)
    return trainer.test(task, data, verbose=False)[0]


TECHNIQUES = {
    "adapters": lambda network: (LoRA(network, rank=2).network,),
    "exits": lambda network: (EarlyExit(network, threshold=0.9).network,),
    "freezing": lambda network: (network, AutoFreeze(interval=2)),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_language_model_learns_and_draws_under_each_technique(name):
    network, *callbacks = TECHNIQUES[name](molformer())
    scores = fitted(network, *callbacks)
    assert scores["test/perplexity"] < 20
    assert name != "exits" or 1 <= scores["test/mean_exit"] <= 3
    assert len(sample(network, [torch.tensor([0])] * 2, end=1, longest=4).tokens) == 2


def test_a_cell_leaves_after_any_layer_with_all_its_answers():
    network = teddy().eval()
    ids = torch.randint(2, 50, (3, 9))
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    with torch.no_grad():
        whole = network(ids, mask)
        controller = ExitController(network)
        with controller.depth(torch.tensor([3, 1, 2])):
            mixed = network(ids, mask)
        with controller.depth(1):
            first = network(ids, mask)
    torch.testing.assert_close(mixed.annotations[0], whole.annotations[0])
    torch.testing.assert_close(mixed.annotations[1], first.annotations[1])
    assert (mixed.cell[2] - whole.cell[2]).abs().max() > 1e-3
    assert (mixed.cell[2] - first.cell[2]).abs().max() > 1e-3


def test_adapters_of_a_cell_network_leave_its_head_whole():
    network = teddy()
    adapted = LoRA(network, rank=2)
    assert "layers.0.qkv" in adapted.layers
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {"annotations.questions", "annotations.score.weight"} <= trained
    assert "genes.weight" not in trained
