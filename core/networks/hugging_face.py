"""Networks that transformers builds: any architecture it knows, under any of its heads."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor, nn

from core.errors import UserError

PREFIX = "model."
"""What stands before the published name of every tensor."""
OF_A_FILE = (
    *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "pleiad"),
)
"""Keys of a published ``config.json`` that say nothing of the architecture."""
PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


class HuggingFace(nn.Module):
    """A transformer by its published configuration; gives the last states (B, L, D).

    Subclasses choose another head by ``auto``, and what to give by :meth:`read`. The tensors bear
    their published names, after ``model.``.

    Args:
        config: the published configuration, as in ``config.json``; ``--checkpoint`` fills it in.
        heads: what the outputs mean, side by side in this order: ``name``, ``kind`` (``single``,
            ``multi`` or ``regression``) and ``labels``, one label an output.

    Raises:
        UserError: if there is no such architecture, or none that has this head.
    """

    auto: ClassVar[str] = "AutoModel"

    def __init__(
        self, config: dict[str, Any] | None = None, heads: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__()
        if not config or "model_type" not in config:
            raise UserError(
                f"{type(self).__name__} needs an architecture: give --checkpoint FOLDER, or"
                " --model.network.config with model_type and sizes"
            )
        self.config = architecture(config)
        self.heads = [dict(head) for head in heads or ()]
        self.model = self._built()
        parameters = signature(self.model.forward).parameters
        kinds = getattr(self.model.config, "type_vocab_size", 0) or 0
        self._takes_types = "token_type_ids" in parameters and kinds > 1

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """Map tokens to what :meth:`read` takes from the model's outputs.

        Args:
            ids: (B, L) tokens.
            mask: (B, L), 1 on tokens and 0 on padding.
            types: (B, L), the number of the text that a token is of, for networks that take it.
        """
        pad = self.model.config.pad_token_id  # some heads look for the first of these
        given = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
        if types is not None and self._takes_types:
            given["token_type_ids"] = types
        return self.read(self.model(**given), mask)

    def read(self, outputs: Any, mask: Tensor) -> Tensor:
        """Take what the network gives from the outputs of transformers."""
        states: Tensor = outputs.last_hidden_state
        return states

    @property
    def body(self) -> nn.Module:
        """The pretrained part, without a head."""
        inner: nn.Module = getattr(self.model, self.model.base_model_prefix, self.model)
        return inner

    @property
    def stages(self) -> list[nn.Module]:
        """What comes before the layers, as one module, and the layers in order.

        With :attr:`head` they hold every parameter once. An architecture that applies the same
        layer again and again (ALBERT) has one stage for each layer that it owns.

        Raises:
            UserError: if the architecture keeps its layers otherwise.
        """
        layers, before, _ = self._parts()
        return [before[0] if len(before) == 1 else nn.ModuleList(before), *layers]

    @property
    def head(self) -> list[nn.Module]:
        """The modules after the layers: the last norm, the pooler and those of the task."""
        outer = [] if self.body is self.model else list(self.model.children())
        *_, after = self._parts()
        return [*after, *(m for m in outer if m is not self.body)]

    @property
    def outputs(self) -> int:
        """How many outputs the heads have."""
        return sum(len(head["labels"]) for head in self.heads)

    @property
    def unused_positions(self) -> int:
        """How many rows of the table of positions, from the first on, no token takes (RoBERTa)."""
        tables = (
            m for name, m in self.model.named_modules() if name.endswith("position_embeddings")
        )
        padding = getattr(next(tables, None), "padding_idx", None)
        return 0 if padding is None else padding + 1

    def published_config(self) -> dict[str, Any]:
        """Give ``config.json`` as transformers writes it."""
        config: dict[str, Any] = self.model.config.to_diff_dict()
        return {**config, "architectures": [type(self.model).__name__]}

    def _parts(self) -> tuple[nn.ModuleList, list[nn.Module], list[nn.Module]]:
        """Find the list of layers in the body, and the modules before and after it."""
        settings = self.model.config
        depth = getattr(settings, "num_hidden_groups", settings.num_hidden_layers)
        stacks = [m for m in self.body.modules() if isinstance(m, nn.ModuleList)]
        layers = next((stack for stack in stacks if len(stack) == depth), None)
        if layers is None or settings.is_encoder_decoder:
            raise UserError(
                f"{self.config['model_type']}: its layers are not in one list of {depth}"
            )
        before: list[nn.Module] = []
        after: list[nn.Module] = []
        holder, passed = self.body, False
        while holder is not layers:
            inner = [m for m in holder.children() if any(layers is each for each in m.modules())]
            biased = hasattr(holder, "rel_embeddings")  # whose norm is none of the layers' outputs
            for name, module in holder.named_children():
                passed = passed or module in inner
                norm = type(module).__name__.lower().endswith("norm")
                last = name == "pooler" or (passed and norm and not biased)
                if module not in inner and any(True for _ in module.parameters()):
                    (after if last else before).append(module)
            holder, passed = inner[0], False
        return layers, before, after

    def _built(self) -> Any:
        import torch
        import transformers

        rest = {key: value for key, value in self.config.items() if key != "model_type"}
        kind = self.config["model_type"]
        try:
            settings = transformers.AutoConfig.for_model(kind, **rest, **self._labels())
            padding = getattr(settings, "pad_token_id", 0)  # images have no tokens
            if padding is None or padding < 0:
                ends = settings.eos_token_id  # the token that load_tokenizer pads with
                settings.pad_token_id = (ends[0] if isinstance(ends, list) else ends) or 0
            auto = getattr(transformers, self.auto)
            if self.auto == "AutoModel":  # a pooler that nothing uses would hinder training
                try:
                    return auto.from_config(settings, dtype=torch.float32, add_pooling_layer=False)
                except TypeError:  # an architecture that has none
                    pass
            return auto.from_config(settings, dtype=torch.float32)
        except Exception as error:  # an architecture's constructor may raise anything
            first = " ".join(str(error).split())[:200]
            raise UserError(
                f"{kind!r} cannot be built as {type(self).__name__} of transformers"
                f" {transformers.__version__} ({first})"
            ) from None

    def _labels(self) -> dict[str, Any]:
        if not self.heads:
            return {}
        names = label_names(self.heads)
        told: dict[str, Any] = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }
        if len(self.heads) == 1:
            told["problem_type"] = PROBLEMS[self.heads[0]["kind"]]
        return told


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a published configuration what says how the network is built."""
    return {key: value for key, value in config.items() if key not in OF_A_FILE}


def label_names(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name every output: its label, after its head's name where that has one."""
    return [
        f"{head['name']}: {label}" if head["name"] else str(label)
        for head in heads
        for label in head["labels"]
    ]
