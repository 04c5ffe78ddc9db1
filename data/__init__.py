"""The benchmark catalogue: what exists, where it comes from, its checksum, licence and citation.

``locate`` gives the verified path of a set, fetching a small one on first use; ``entry`` gives its
declared facts; ``find_model`` gives the folder of a pretrained model. Importing this package costs
milliseconds: whatever is heavy is imported on use.

Example:
    >>> import data
    >>> data.entry("etth1").facts["channels"]
    7
"""

from data.catalogue import Entry, entries, entry
from data.errors import DataError
from data.models import find_model
from data.store import fetch, locate, verify, where

__all__ = [
    "DataError",
    "Entry",
    "entries",
    "entry",
    "fetch",
    "find_model",
    "locate",
    "verify",
    "where",
]
