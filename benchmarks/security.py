"""Flows a second from a CSV file to scores, beside windows that are put together from data frames.

``python benchmarks/security.py [--output FOLDER]``. Both sides read KDDTest+ of NSL-KDD (22,544
flows), scale and code its fields by what KDDTrain+ has held, as published, and judge the window of
8 flows that ends at each flow, in batches of 1,024, by the same FlowTransformer (records encoded to
64, two encoder blocks, the last flow), on one thread. Ours is what ``pleiad predict`` does without
writing. The other side does as the published framework: one-hot columns in one data frame, a slice
of it for each window, one concatenation for each batch, field by field cut into windows again, and
the network as it is written, without what ours leaves out because no answer depends on it.
The scores are held to be equal. Seconds are process time and medians of the rounds, which the
sides take in turn; a ratio is the other side's time over ours.
"""

from functools import partial
from pathlib import Path

import measure
import numpy as np
import pandas as pd
import torch
from measure import Row
from numpy.typing import NDArray
from torch import Tensor

import data
from domains.security.data import FlowData
from domains.security.flow_files import read_flows
from domains.security.networks.flow_transformer import FlowTransformer
from domains.security.preprocessing import FlowPreprocessing
from domains.security.windows import HostWindows

BATCH = 1024
ROUNDS = 3
REQUIRED = 5.0


def ours(path: Path, flows: FlowPreprocessing, network: FlowTransformer) -> Tensor:
    """Judge the flows of a file (R,), piece by piece, with windows gathered by an index."""
    stream, scores = HostWindows(flows.window), []
    for table in read_flows(path, flows.specification):
        encoded = flows.encode(table)
        windows = stream.add(None, encoded.numeric, encoded.codes)
        rows = np.arange(table.num_rows)
        for start in range(0, len(rows), BATCH):
            batch = map(torch.from_numpy, windows.at(rows[start : start + BATCH]))
            with torch.inference_mode():
                scores.append(network(*batch)[:, 0])
    return torch.cat(scores)


def framed(path: Path, flows: FlowPreprocessing) -> tuple[pd.DataFrame, list[list[str]]]:
    """Read a file into one frame of scaled and one-hot columns; name those of each field."""
    fields = flows.specification
    raw = pd.read_csv(
        path, header=None, names=fields.header, dtype=dict.fromkeys(fields.categorical, str)
    )
    columns: dict[str, NDArray[np.float32]] = {}
    for name, low, high in zip(fields.numeric, flows.low, flows.high, strict=True):
        values = raw[name].to_numpy(np.float32)
        columns[name] = np.log(values - low + 1) / (np.log(high - low + 1) or 1)
    owned = [[name] for name in fields.numeric]
    for name, kept in zip(fields.categorical, flows.levels, strict=True):
        codes = np.zeros(len(raw), int)
        for place, level in enumerate(kept):
            codes[raw[name] == level] = place
        one_hot = {f"{name}_{place}": np.float32(codes == place) for place in range(len(kept))}
        columns |= one_hot
        owned.append(list(one_hot))
    return pd.DataFrame(columns), owned


def from_frames(path: Path, flows: FlowPreprocessing, network: FlowTransformer) -> Tensor:
    """Judge the flows of a file that have a whole window, as the published framework does."""
    frame, owned = framed(path, flows)
    window, scores = flows.window, []
    targets = np.arange(window - 1, len(frame))
    for start in range(0, len(targets), BATCH):
        windows = [frame.iloc[row - window + 1 : row + 1] for row in targets[start : start + BATCH]]
        joined = pd.concat(windows)
        inputs = []
        for names in owned:
            values = joined[names].to_numpy()
            inputs.append(
                np.array([values[at : at + window] for at in range(0, len(values), window)])
            )
        record = torch.from_numpy(np.concatenate(inputs, 2))
        with torch.inference_mode():
            scores.append(as_written(record, network))
    return torch.cat(scores)


def as_written(record: Tensor, network: FlowTransformer) -> Tensor:
    """Judge windows (B, W, fields), step by step as the paper's code computes it."""
    x = network.encode.embed(record)
    for block in network.blocks:
        parts, split = block.attention, (block.attention.heads, block.attention.size)
        q, k, v = (layer(x).unflatten(2, split) for layer in (parts.query, parts.key, parts.value))
        weights = (torch.einsum("bqhs,bkhs->bhqk", q, k) / split[1] ** 0.5).softmax(3)
        o = parts.out(torch.einsum("bhqk,bkhs->bqhs", weights, v).flatten(2))
        hidden = block.contract(block.expand(block.norm_attention(x + o)).relu()).relu()
        x = block.norm_inner(o + hidden)
    scores: Tensor = network.classifier(x[:, -1])[:, 0]
    return scores


def end_to_end() -> list[Row]:
    """Compare the two, from the file to the scores."""
    source = FlowData(faithful=True)
    source.setup()
    flows = source.preprocessing
    network = FlowTransformer(**flows.sizes).eval()
    path = data.locate("nsl_kdd") / data.entry("nsl_kdd").splits["files"]["test"]
    scores = ours(path, flows, network)
    gap = float((scores[flows.window - 1 :] - from_frames(path, flows, network)).abs().max())
    assert gap <= measure.SAME, f"the scores differ by {gap}"
    sides = {"ours": partial(ours, path, flows, network)}
    sides["data frames"] = partial(from_frames, path, flows, network)
    seconds = measure.alternate(sides, ROUNDS)
    speeds = [f"{len(scores) / each:,.0f}" for each in seconds.values()]
    note = f"{' and '.join(speeds)} flows a second"
    return [
        Row("CSV to scores", "data frames", tuple(seconds.values()), REQUIRED, note)  # type: ignore[arg-type]
    ]


if __name__ == "__main__":
    measure.main({"end_to_end": end_to_end}, "security.png")
