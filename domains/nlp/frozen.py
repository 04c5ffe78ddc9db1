"""The body of a pretrained network as it is, for what stands beside a fine-tuned one."""

from typing import Any, TypeVar

from core.errors import UserError
from core.networks.hugging_face import HuggingFace
from core.openers import read_json
from core.tensor_files import read_tensors
from core.warm_start import warm_start
from data import find_model

Body = TypeVar("Body", bound=HuggingFace)


def frozen(name: str, kind: type[Body], **arguments: Any) -> Body | None:
    """Load a pretrained body, not to be trained; None where there are no weights that fit.

    Args:
        name: a folder, a name of the catalogue or an id of the hub.
        kind: what the body becomes.
        arguments: of ``kind``, beside the configuration.
    """
    folder = find_model(name)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        return None
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        return None
    network = kind(config, **arguments)
    try:
        warm_start(network, read_tensors(folder)[0], name)
    except UserError:  # weights of another kind
        return None
    return network.eval().requires_grad_(False)
