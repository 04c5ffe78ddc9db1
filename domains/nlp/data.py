"""What the data modules of texts share: a tokenizer, and batches of similar lengths."""

from collections.abc import Sized
from typing import Any

from torch import nn

from core.data_module import DataModule
from core.errors import UserError
from core.length_plan import Lengths
from core.networks.hugging_face import HuggingFace
from domains.nlp.encoding import LongInput
from domains.nlp.tokenizer import check_vocabulary, load_tokenizer
from domains.nlp.tokens import MULTIPLE, width


class TextData(DataModule):
    """Texts in batches of similar lengths under a token budget.

    A subclass sets its data sets in ``setup``; each tells by ``lengths`` how long its items are.

    Args:
        tokenizer: a folder, a name of the catalogue or an id of the hub; ``--checkpoint`` fills it
            in.
        max_length: the most tokens of a text, the special ones included.
        long_input: what to do about a longer text: ``truncate``, ``head_tail`` or ``window``.
        token_budget: the most tokens in a batch, padding included.
        batch_size: the most texts in a training batch, over all processes together.
        eval_batch_size: the most texts in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        max_length: int = 128,
        long_input: LongInput = "truncate",
        token_budget: int = 16_384,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if max_length < 3 or token_budget < max_length:
            raise UserError(
                f"data.max_length={max_length} must be at least 3, and"
                f" data.token_budget={token_budget} at least as much"
            )
        self.tokenizer_name = tokenizer
        self.max_length = max_length
        self.long_input: LongInput = long_input
        self.token_budget = token_budget

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; do not change it, it is shared.

        Raises:
            UserError: if none is named.
        """
        if self.tokenizer_name is None:
            raise UserError("--data.tokenizer is needed, or --checkpoint, which brings its own")
        return load_tokenizer(self.tokenizer_name)

    def lengths(self, dataset: Sized) -> Lengths | None:
        """Ask a data set for the lengths of its items."""
        tokens, rows = dataset.lengths  # type: ignore[attr-defined]
        return Lengths(tokens, self.token_budget, rows)

    def check(self, network: nn.Module) -> None:
        """Refuse a network that does not know every token, or texts that are longer than it takes.

        Raises:
            UserError: naming the sizes.
        """
        if not isinstance(network, HuggingFace):
            return
        config = network.model.config
        check_vocabulary(self.tokenizer, config.vocab_size, str(self.tokenizer_name))
        stated = getattr(config, "max_position_embeddings", None)
        used = width(self.max_length)  # batches are padded so far
        unused = network.unused_positions
        if stated is not None and used + unused > stated:
            raise UserError(
                f"data.max_length={self.max_length} is more than the network's"
                f" {(stated - unused) // MULTIPLE * MULTIPLE} positions in steps of {MULTIPLE};"
                " lower it (long texts: --data.long_input=window), or lengthen the network by"
                f" --model.network.config.max_position_embeddings={used + unused}"
            )
