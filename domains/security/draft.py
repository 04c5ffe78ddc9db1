"""Draft the specification of a table of flows from its first lines."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from core.errors import UserError
from domains.security.flow_files import MISSING, columns_of, delimiter_of
from domains.security.presets import NSL_KDD, PRESETS
from domains.security.specification import FlowSpecification

LABELS = (
    *("attack_cat", "attack", "attack_type", "attack_name", "label", "class", "category"),
    *("is_attack", "malicious", "target"),
)
BENIGN = {"benign", "normal", "background", "legitimate"}
"""Values that tell a label whose name does not."""
TIMES = ("timestamp", "time", "ts", "date", "datetime", "start_time", "stime", "flow_start")
SOURCES = (
    *("src_ip", "source_ip", "srcip", "ip_src", "ipv4_src_addr", "saddr", "src_addr", "src"),
    *("source_address", "id_orig_h", "src_host", "source"),
)
DESTINATIONS = (
    *("dst_ip", "destination_ip", "dstip", "ip_dst", "ipv4_dst_addr", "daddr", "dst_addr", "dst"),
    *("destination_address", "id_resp_h", "dst_host", "destination"),
)
IDENTIFIERS = (
    *("id", "uid", "flow_id", "index", "unnamed_0", "", "difficulty", "end_time", "ltime"),
    "record_id",
)
LEVEL_WORDS = {"port", "sport", "dport", "proto", "protocol", "flag", "flags", "type", "code"}
LEVEL_WORDS |= {"state", "service", "vlan", "tos", "dsfield"}
_SAMPLE = 2**21
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}|[0-9a-fA-F]*:[0-9a-fA-F:]+:[0-9a-fA-F.:]*")


def draft(path: Path) -> tuple[FlowSpecification, str]:
    """Say what the columns of a table are, as far as names and values tell, and where from.

    A public set is known by its columns. Else texts are levels and so are numbers whose name says
    so, such as ports; addresses, times, identifiers and second labels are no fields.

    Raises:
        UserError: if the file cannot be read, or has no header or no field.
    """
    if (name := known_set(path)) is not None:
        return PRESETS[name], f"the preset {name}"
    sample = _sample(path)
    plain = {name: _plain(name) for name in sample}
    labels = [n for word in LABELS for n in plain if plain[n] == word]
    labels += [n for n in sample if n not in labels and _tells_benign(sample[n])]
    drop = labels[1:]
    hosts: dict[str, str | None] = {}
    for key, words in (("source", SOURCES), ("destination", DESTINATIONS), ("time", TIMES)):
        found = [name for word in words for name in plain if plain[name] == word]
        hosts[key] = found[0] if found else None
        drop += found
    drop += [name for name in plain if plain[name] in IDENTIFIERS]
    numeric: list[str] = []
    categorical: list[str] = []
    for name in sample:
        if name in drop or name in labels:
            continue
        kind = _kind(sample[name], set(plain[name].split("_")))
        {"number": numeric, "level": categorical, "none": drop}[kind].append(name)
    if not numeric and not categorical:
        raise UserError(f"{path}: holds no column that could be a field of a flow")
    return (
        FlowSpecification(
            tuple(numeric),
            tuple(categorical),
            labels[0] if labels else None,
            drop=tuple(dict.fromkeys(drop)),
            source=hosts["source"],
            destination=hosts["destination"],
            time=hosts["time"],
        ),
        "drafted from names and values",
    )


def known_set(path: Path) -> str | None:
    """Name the public set that a table is of, by its columns; None where it is none."""
    columns = columns_of(path)
    for name, preset in PRESETS.items():
        if set(preset.fields) <= set(columns):
            return name
    whole = len(NSL_KDD.header)
    if whole - 2 <= len(columns) <= whole and columns[1] in ("tcp", "udp", "icmp"):
        return "nsl_kdd"
    return None


def is_flows(path: Path) -> bool:
    """Say whether a table has the columns of a public set, protocol and host, or both hosts."""
    try:
        plain = {_plain(name) for name in columns_of(path)}
        known = known_set(path)
    except UserError:
        return False
    protocol = plain & {"proto", "protocol", "protocol_type", "ip_proto"}
    ends = plain & {*SOURCES, *DESTINATIONS, "dst_port", "dport", "destination_port", "src_bytes"}
    hosts = plain & set(SOURCES) and plain & set(DESTINATIONS)
    return known is not None or bool(protocol and ends) or bool(hosts)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _sample(path: Path) -> dict[str, pd.Series]:
    """Read the first lines with the types they seem to have, by column."""
    columns = columns_of(path)
    if path.suffix.lower() in (".parquet", ".pq"):
        table = next(pq.ParquetFile(path).iter_batches(16_384), None)
        if table is None:
            raise UserError(f"{path}: holds no flows")
        return dict(table.rename_columns(columns).to_pandas().items())
    if all(_is_number(name) for name in columns if name):
        raise UserError(
            f"{path}: its first line holds numbers alone, so it has no header; name its columns as"
            " `header: [a, b, ...]` in a specification"
        )
    with pa.input_stream(str(path), compression="detect") as stream:
        text = stream.read(_SAMPLE)
    lines = text[: text.rfind(b"\n") + 1] if len(text) == _SAMPLE else text
    first, _, rest = lines.partition(b"\n")
    if not rest.strip():
        raise UserError(f"{path}: holds no flows")
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(rest.decode("utf-8", "replace").encode()),
            pyarrow.csv.ReadOptions(
                column_names=columns, block_size=2 * _SAMPLE, use_threads=False
            ),
            pyarrow.csv.ParseOptions(
                delimiter=delimiter_of(first.decode("utf-8", "replace")),
                invalid_row_handler=lambda row: "skip",
            ),
            pyarrow.csv.ConvertOptions(null_values=MISSING),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    return dict(table.to_pandas(use_threads=False).items())


def _tells_benign(column: pd.Series) -> bool:
    """Say whether one of the values is a word for flows that are no attack."""
    return bool(column.map(lambda value: str(value).strip().lower()).isin(BENIGN).any())


def _kind(column: pd.Series, words: set[str]) -> str:
    """Say whether a column holds numbers, levels or neither."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return "none"
    if pd.api.types.is_bool_dtype(column):
        return "level"
    values = column.dropna()
    if not pd.api.types.is_numeric_dtype(column):
        parsed = pd.to_numeric(values.astype(str).str.strip(), errors="coerce")
        if not len(values) or parsed.isna().mean() > 0.1:
            texts = values.astype(str)
            single = texts.nunique() > max(1000, len(texts) // 2)
            addresses = len(texts) and texts.head(100).map(_is_address).mean() > 0.5
            return "none" if single or addresses else "level"
        values = parsed.dropna()
    numbers = np.asarray(values, float)
    whole = bool((numbers[np.isfinite(numbers)] % 1 == 0).all())
    counted = words & {"count", "cnt", "counts", "num", "number", "bytes", "pkts", "rate"}
    return "level" if whole and words & LEVEL_WORDS and not counted else "number"


def _is_address(text: str) -> bool:
    return _ADDRESS.fullmatch(text.strip()) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
