"""A user's own tables of network flows, bound to no benchmark."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import UserError
from domains.security.data import FlowModule
from domains.security.draft import draft
from domains.security.flow_files import columns_of, find_flow_files
from domains.security.flow_splits import columns_of_rule, divide
from domains.security.prepared import ClassesOf, Prepared, prepare
from domains.security.preprocessing import Context
from domains.security.presets import find_specification
from domains.security.raw_flows import read_raw
from domains.security.specification import FlowSpecification, near

USES = ("numeric", "categorical", "drop")
ROLES = ("label", "benign", "source", "destination")


class OwnFlowData(FlowModule):
    """Your own flows: CSV, CSV packed by gzip, or Parquet, of any size.

    Args:
        train: a file, a folder or a pattern; several files are read as one, in order of their
            names.
        val: the same for validation; without it flows of ``train`` are taken.
        test: the same for the test.
        specification: a preset (``nsl_kdd``, ``unsw_nb15``, ``cse_cic_ids2018``, ``cic_ids2017``,
            ``netflow_v2``) or a YAML file, as ``pleiad show FLOWS.csv`` drafts it; None drafts it.
        label: the column that names the attack.
        benign: its value where there is none.
        numeric: columns that are numbers, comma-separated, whatever the specification says.
        categorical: columns that are levels, comma-separated.
        drop: columns that must not be fields, comma-separated.
        source: the column of the source host.
        destination: the column of the destination host.
        split: how ``train`` is divided where a file is not given: ``last``, ``attack:NAME,NAME``
            (which the test alone then holds), ``group:COLUMN`` such as a host, ``column:COLUMN``,
            ``time:COLUMN``, ``stratified``, ``random`` (both leak), or a ``splits.parquet`` of
            another run.
        val_fraction: share of flows for validation, where no file is given.
        test_fraction: share of flows for the test, where no file is given.
        window: flows in a window.
        context: whose flows a window holds: all of the ``file``, those of the same ``source`` or
            ``destination``, or those between the ``pair`` of them.
        classes: ``binary``, or ``multi`` for a class each label value or each class of the
            specification.
        faithful: the published preprocessing, with its flaws.
        batch_size: windows in a training batch, over all processes together.
        eval_batch_size: windows in a batch of validation and test; never changes a result.
        steps_per_epoch: batches in an epoch, each drawn anew.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn; None takes the run's seed.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        specification: str | None = None,
        label: str | None = None,
        benign: str | None = None,
        numeric: str | None = None,
        categorical: str | None = None,
        drop: str | None = None,
        source: str | None = None,
        destination: str | None = None,
        split: str = "last",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        window: int = 8,
        context: Context = "file",
        classes: ClassesOf = "binary",
        faithful: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 1024,
        steps_per_epoch: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        config = {
            **{"train": train, "val": val, "test": test, "specification": specification},
            **{"label": label, "benign": benign, "numeric": numeric, "categorical": categorical},
            **{"drop": drop, "source": source, "destination": destination, "split": split},
            **{"val_fraction": val_fraction, "test_fraction": test_fraction, "window": window},
            **{"context": context, "classes": classes, "faithful": faithful},
        }
        super().__init__(config, batch_size, eval_batch_size, steps_per_epoch, num_workers, seed)

    @classmethod
    def prepare(cls, config: Mapping[str, Any]) -> Prepared:
        """Read and divide the files; the last ones are kept."""
        if not config.get("train"):
            raise UserError("--data.train=FLOWS.csv is needed, a table of network flows")
        given = cls.filled(config)
        parts = ("train", "val", "test")
        files = [find_flow_files(str(given[p]), p) if given.get(p) else () for p in parts]
        stamps = [(f.stat().st_mtime_ns, f.stat().st_size) for own in files for f in own]
        names = (*SETTINGS, "specification", *USES, *ROLES)
        written = Path(str(given.get("specification")))
        stamps += [(written.stat().st_mtime_ns, 0)] if written.is_file() else []
        return _own(tuple(files), tuple(stamps), tuple((name, given.get(name)) for name in names))

    @property
    def facts(self) -> dict[str, Any]:
        """The file's name; no published setting."""
        return {
            "dataset": Path(str(self.config["train"])).name,
            "setting": {},
            "notes": list(self.prepared.notes) if self.prepared else [],
        }


SETTINGS = ("split", "val_fraction", "test_fraction", "window", "context", "classes", "faithful")
"""The arguments that say what is made of the flows."""


@lru_cache(maxsize=1)
def _own(
    files: tuple[tuple[Path, ...], ...], stamps: tuple[Any, ...], settings: tuple[Any, ...]
) -> Prepared:
    given = dict(settings)
    shares = [
        0.0 if own else given[f"{part}_fraction"]
        for part, own in zip(("val", "test"), files[1:], strict=True)
    ]
    if min(given["val_fraction"], given["test_fraction"]) <= 0 or sum(shares) >= 1:
        raise UserError(
            f"data.val_fraction={given['val_fraction']} and"
            f" data.test_fraction={given['test_fraction']} must be shares that leave flows to"
            " train on"
        )
    specification, told = own_specification(files[0][0], given)
    if specification.label is None:
        raise UserError(
            f"{files[0][0]}: which column names the attack? Set --data.label=COLUMN, of"
            f" {', '.join(columns_of(files[0][0], specification))}"
        )
    also = (specification.label, *columns_of_rule(given["split"]))
    _check_columns(specification, also)
    tables = [own for own in files if own]
    options = {"context": given["context"], "faithful": given["faithful"]}
    raw = read_raw(tables, specification, also=also, **options)
    division = divide(raw, given["split"], (1 - sum(shares), shares[0], shares[1]))
    for number, part in enumerate([place for place in (1, 2) if files[place]], 1):
        division.part[raw.starts[number] : raw.starts[number + 1]] = part
    division = division._replace(notes=(told, *division.notes))
    return prepare(raw, division, window=given["window"], classes=given["classes"], **options)


def own_specification(path: Path, given: Mapping[str, Any]) -> tuple[FlowSpecification, str]:
    """Give the specification that the keys state, and a word on where it is from.

    Raises:
        UserError: if a key names a column that there is not.
    """
    if given.get("specification"):
        found, told = find_specification(given["specification"]), str(given["specification"])
    else:
        found, told = draft(path)
    columns = columns_of(path, found)
    changes: dict[str, Any] = {key: given.get(key) for key in ROLES}
    for key in (*USES, "label", "source", "destination"):
        value = given.get(key)
        names = [] if value is None else [str(value).strip()]
        if key in USES and value is not None:
            names = [name.strip() for name in str(value).split(",")]
            changes[key] = tuple(names)
        for name in names:
            if name not in columns:
                raise UserError(
                    f"--data.{key}={value}: {path} has no column {name!r}{near(name, columns, 3)}"
                )
    return found.changed(**changes), f"specification: {told}"


def _check_columns(specification: FlowSpecification, columns: tuple[str, ...]) -> None:
    """Refuse a column that is read as numbers."""
    for name in columns:
        if name in specification.numeric:
            raise UserError(
                f"--data.split: the column {name!r} is a numeric field; add --data.drop={name}"
            )
