"""Fine-tuning MiniLM on SST-2 in four ways, for ``benchmarks/nlp.py``: the sides of its tables.

Each side has a process to itself where memory counts, so that everything costly is imported inside.
"""

import hashlib
import logging
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

os.environ["HF_HUB_OFFLINE"] = "1"
EXPERIMENT = "nlp/minilm_sst2"
RATE, LORA_RATE, DECAY, CLIP = 5e-5, 5e-4, 0.01, 1.0  # the experiment's; few weights want more
KEYS = ("input_ids", "attention_mask", "token_type_ids", "labels")
Batch = Mapping[str, Tensor]


class Work(NamedTuple):
    """What to train: the folder that :func:`dump` wrote, and for how many steps."""

    folder: Path
    steps: int


class Given(NamedTuple):
    """What :func:`dump` wrote: batches with the seeds of their steps, and how to calculate."""

    train: list[Batch]
    seeds: list[int]
    test: list[Batch]
    precision: str


class Trained(NamedTuple):
    """A trained model, the process and wall time of its steps but the last, and its checks."""

    model: nn.Module
    precision: str
    seconds: list[float]
    wall: float
    peak: float  # MB that the process had at most, imports and all
    losses: list[float]
    batches: list[Batch]


class Record:
    """Notes on a training that is under way: the clocks at the start of each step, its losses."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.batches: list[Batch] = []
        self.losses: list[Tensor] = []
        self.peak = 0.0

    def begin(self, batch: Batch) -> None:
        """Note that a step begins."""
        self.marks.append((time.process_time(), time.perf_counter()))
        self.batches.append(batch)
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def end(self, loss: Tensor) -> None:
        """Note a loss."""
        self.losses.append(loss.detach())

    def trained(self, model: nn.Module, precision: str) -> Trained:
        """Put the notes together."""
        seconds = [after[0] - before[0] for before, after in pairwise(self.marks)]
        wall = self.marks[-1][1] - self.marks[0][1]
        losses = [float(loss) for loss in self.losses]
        return Trained(model, precision, seconds, wall, self.peak, losses, self.batches)


def digest(batches: Iterable[Batch]) -> str:
    """Identify batches by all that they hold."""
    found = hashlib.sha256()
    for batch in batches:
        for key in KEYS:
            found.update(str(tuple(batch[key].shape)).encode() + batch[key].numpy().tobytes())
    return found.hexdigest()


def dump(folder: Path, steps: int) -> None:
    """Write the model as it begins, the first batches of our loader and those of the test."""
    from core.batch_plan import mix_seed
    from core.precision import faster_precision

    precision = faster_precision()
    built = _prepared([], precision)
    batches = [_named(built.task, b) for b in islice(built.data.train_dataloader(), steps)]
    seeds = [mix_seed(built.seed, 0, number, 0) for number in range(len(batches))]
    test = [_named(built.task, batch) for batch in built.data.test_dataloader()]
    torch.save(Given(batches, seeds, test, precision)._asdict(), folder / "given.pt")
    built.task.network.model.save_pretrained(folder)


def ours(work: Work) -> Trained:
    """Train the experiment as ``pleiad fit`` does, but for its bar."""
    return _fitted(work.steps, read(work.folder).precision)


def plain_loop(work: Work) -> Trained:
    """Train by a loop of PyTorch, over batches that are padded already."""
    given, model, record = read(work.folder), load(work.folder), Record()
    optimizer, scheduler = _optimizer(model, RATE, work.steps)
    model.train()
    for batch, seed in zip(given.train[: work.steps], given.seeds, strict=False):
        record.begin(batch)
        torch.default_generator.manual_seed(seed)
        with _autocast(given.precision):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        record.end(loss)
    return record.trained(model, given.precision)


def hf_trainer(work: Work) -> Trained:
    """Train by Hugging Face's Trainer, over batches that are padded already."""
    return _by_trainer(work, load(work.folder), RATE)


def hf_trainer_lora(work: Work) -> Trained:
    """Train by Hugging Face's Trainer what LoRA adds to the queries and values, and the head."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig("SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    return _by_trainer(work, get_peft_model(load(work.folder), config), LORA_RATE)


def ours_own(work: Work) -> Trained:
    """Train the experiment as it is, at the precision that this machine is faster with."""
    from core.precision import faster_precision

    return _fitted(work.steps, faster_precision())


def hf_trainer_own(work: Work) -> Trained:
    """Train by Trainer as it comes, but for batches of 32: single precision, random batches."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer

    from data import find_model
    from domains.nlp.benchmarks import read_benchmark

    tokenizer = AutoTokenizer.from_pretrained(find_model("minilm"))
    found = read_benchmark("sst", None)
    frame = found.frames["train"]
    encoded = tokenizer(frame[found.text].tolist(), truncation=True, max_length=128)
    labels = [["negative", "positive"].index(label) for label in frame[found.label]]
    items = [
        {key: encoded[key][row] for key in KEYS[:-1]} | {"label": label}
        for row, label in enumerate(labels)
    ]
    torch.manual_seed(1)  # the head begins at random
    record, model = Record(), load(find_model("minilm"))
    kind = _recording(Trainer, record, None)
    arguments = _arguments(work, per_device_train_batch_size=32)
    collate = DataCollatorWithPadding(tokenizer)
    _quietly(kind(model=model, args=arguments, train_dataset=items, data_collator=collate))
    return record.trained(model, "32-true")


def read(folder: Path) -> Given:
    """Read what :func:`dump` wrote."""
    return Given(**torch.load(folder / "given.pt"))


def load(folder: Path) -> Any:
    """Load the model as it begins."""
    _silence()
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Batch], precision: str) -> float:
    """Judge a model of transformers on every test text, the same way for every side."""
    model.eval()
    right = []
    for batch in batches:
        with _autocast(precision):
            logits = model(**{key: batch[key] for key in KEYS[:-1]}).logits
        right.append(logits.argmax(1) == batch["labels"])
    return float(torch.cat(right).double().mean())


def _fitted(steps: int, precision: str) -> Trained:
    from lightning.pytorch import Callback

    from pleiad import run

    class Notes(Callback):
        def on_train_batch_start(self, trainer, task, batch, number):  # noqa: ANN001, ANN202
            record.begin(_named(task, batch))

        def on_train_batch_end(self, trainer, task, outputs, batch, number):  # noqa: ANN001, ANN202
            record.end(outputs["loss"])

    record = Record()
    keys = [f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0"]
    built = _prepared(keys, precision)
    with tempfile.TemporaryDirectory() as folder:
        run.make_trainer(built, Path(folder), [Notes()]).fit(built.task, built.data)
    return record.trained(built.task.network.model, precision)


def _prepared(keys: Sequence[str], precision: str) -> Any:
    from pleiad import run

    _silence()  # after the import, which sets Lightning's level
    options = run.Options(precision=precision)
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    experiment = run.resolved(EXPERIMENT, [*quiet, *keys], options)
    return run.prepare(experiment, options)[0]


def _named(task: Any, batch: Any) -> Batch:
    """Give a batch of ours by the names of transformers."""
    labels = task.heads[0].target(batch.targets)
    return dict(zip(KEYS, (*batch.inputs, labels), strict=True))


def _by_trainer(work: Work, model: Any, rate: float) -> Trained:
    from transformers import Trainer

    given, record = read(work.folder), Record()
    kind = _recording(Trainer, record, given.seeds)

    class Fed(kind):  # type: ignore[misc, valid-type]
        def get_train_dataloader(self):  # noqa: ANN202
            batches = given.train[: work.steps]
            return self.accelerator.prepare(DataLoader(batches, 1, collate_fn=itemgetter(0)))

    arguments = _arguments(work, bf16=given.precision == "bf16-mixed", logging_steps=10)
    _quietly(Fed(model=model, args=arguments, optimizers=_optimizer(model, rate, work.steps)))
    return record.trained(model, given.precision)


def _recording(kind: type, record: Record, seeds: Sequence[int] | None) -> type:
    """Extend Trainer by notes on each step, seeded where there are seeds."""

    class Recording(kind):  # type: ignore[misc, valid-type]
        def training_step(self, model, inputs, *rest):  # noqa: ANN001, ANN002, ANN202
            if seeds is not None:
                torch.default_generator.manual_seed(seeds[len(record.marks)])
            record.begin(inputs)
            loss = super().training_step(model, inputs, *rest)
            record.end(loss)
            return loss

    return Recording


def _quietly(trainer: Any) -> None:
    """Train without a word."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _arguments(work: Work, **own: Any) -> Any:
    """Make Trainer's settings, quiet and without files; all others as they come."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(work.folder / "trainer"),
        max_steps=work.steps,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
        **own,
    )


def _optimizer(model: nn.Module, rate: float, steps: int) -> tuple[Any, Any]:
    """Make the experiment's optimizer and schedule."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=DECAY, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.1, anneal_strategy="linear"
    )
    return optimizer, scheduler


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


def _silence() -> None:
    import transformers

    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


SAME: Mapping[str, Callable[[Work], Trained]] = {
    "plain loop": plain_loop,
    "ours": ours,
    "Trainer": hf_trainer,
    "Trainer, LoRA": hf_trainer_lora,
}
OWN: Mapping[str, Callable[[Work], Trained]] = {"ours": ours_own, "Trainer": hf_trainer_own}
