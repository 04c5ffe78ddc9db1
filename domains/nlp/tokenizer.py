"""The tokenizer of a pretrained model: found, checked and kept."""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from core.errors import UserError
from data import find_model


def load_tokenizer(name: str) -> Any:
    """Load the fast tokenizer of a model; nothing is fetched for a folder.

    Args:
        name: a folder, a name of the catalogue or an id of the hub.

    Returns:
        A ``transformers.PreTrainedTokenizerFast``; do not change it, calls share it.

    Raises:
        UserError: if there is none, or it is none of the fast kind.
        DataError: if there is no such model.
    """
    return _load(str(find_model(name)), name)


@lru_cache(maxsize=4)
def _load(folder: str, name: str) -> Any:
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise UserError(f"{name}: is no folder with a tokenizer; name it by --data.tokenizer")
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file raises many types
        first = " ".join(str(error).split())[:160]
        raise UserError(f"{name}: its tokenizer cannot be read ({first})") from None
    if not tokenizer.is_fast:
        raise UserError(f"{name}: has no tokenizer.json, the form of a fast tokenizer")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"{name}: its tokenizer has no token for padding")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Give the files, by name, that plain transformers loads the tokenizer from."""
    tokenizer.backend_tokenizer.no_truncation()  # what the last call asked for is no part of it
    tokenizer.backend_tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


class Tokenized:
    """What a preprocessing with a ``tokenizer`` does about its files, a frozen dataclass."""

    tokenizer: Any

    def files(self) -> Mapping[str, bytes]:
        """Give the tokenizer's files, to lie in the model's folder."""
        return tokenizer_files(self.tokenizer)

    def attach(self, folder: Path) -> Self:
        """Load the tokenizer that lies in a model's folder."""
        changed: Any = replace(self, tokenizer=load_tokenizer(str(folder)))  # type: ignore[type-var]
        return changed  # type: ignore[no-any-return]


def fingerprint(tokenizer: Any) -> str:
    """Identify what a tokenizer does, whatever its last call asked for."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    asked = {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(described | asked).encode()).hexdigest()


def check_vocabulary(tokenizer: Any, known: int, name: str) -> None:
    """Check that a network knows every token.

    Raises:
        UserError: naming both numbers.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= known:
        raise UserError(
            f"{name}: the tokenizer has tokens up to {largest}, and the network knows {known};"
            " take the tokenizer of the network, or widen the network by"
            f" --model.network.config.vocab_size={largest + 1}"
        )
