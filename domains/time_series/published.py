"""Read the configurations and weights of published forecasters; all faults in one error.

The networks of one family of published code (Informer, Autoformer, iTransformer, S-Mamba) share
names of options, and write maps of single time steps as convolutions of width one.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from core import published

POINTWISE = r"\.conv[12]\.weight$"
"""Linear maps that are published as convolutions of width one: (out, in, 1)."""

_OPTIONS = """
    is_training model_id model data root_path data_path features target checkpoints distil
    do_predict num_workers itr train_epochs batch_size patience learning_rate des loss lradj use_amp
    use_gpu gpu use_multi_gpu devices exp_name channel_independence inverse target_root_path
    target_data_path efficient_training partial_start_index bucket_size n_hashes output_attention
    class_strategy seed
"""  # of the published command; they change no network, or none of this family
_INPUTS = "B L lengths salt"  # what is told about inputs that are stored beside weights
UNUSED = frozenset(f"{_OPTIONS} {_INPUTS}".split())


def arguments(
    network: str,
    config: Mapping[str, Any],
    needed: Mapping[str, str],
    optional: Mapping[str, str],
    unused: Iterable[str] = (),
) -> dict[str, Any]:
    """Give a published configuration our names.

    Args:
        network: the network's name, for the error.
        config: the published configuration.
        needed: published names that must be there, and ours.
        optional: published names that may be there, and ours.
        unused: further names that have no effect on this network.

    Raises:
        ValueError: listing all that is missing or unknown.
    """
    return published.arguments(network, config, needed, optional, UNUSED.union(unused))


load = partial(published.load, pointwise=POINTWISE)
"""Load published weights; see :func:`core.published.load`."""
