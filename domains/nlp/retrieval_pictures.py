"""A figure of retrieval: each question beside the ranking by words."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure

from domains.nlp.index import DEPTH, by_words
from domains.nlp.ranking import NDCG, ranked_gains

if TYPE_CHECKING:
    from domains.nlp.retrieval_data import RetrievalData

OURS, BOTH = "#0072B2", "#E69F00"  # Okabe and Ito


def draw(predictions: Path, data: "RetrievalData", folder: Path) -> list[Path]:
    """Draw nDCG@10 of each question, alone and together with BM25, over that of BM25.

    Args:
        predictions: rows ``id``, ``relevant``, ``ndcg@10`` and ``ndcg@10_hybrid``.
        data: the questions, with their scores of words.
        folder: where the picture goes.
    """
    if not predictions.is_file():
        return []
    names = ["id", "relevant", "ndcg@10", "ndcg@10_hybrid"]
    table = pq.read_table(predictions, columns=names)
    found = {name: table[name].to_numpy() for name in names}
    counted = found["relevant"] > 0
    rows = torch.from_numpy(found["id"][counted].copy())
    batch = data.test_set.__getitems__(rows.tolist())  # type: ignore[attr-defined]
    ranked = by_words(data.words("test", rows), DEPTH).rows
    gains = ranked_gains(ranked, batch.judged, batch.gains)
    words = NDCG(10).each(gains, batch.gains).numpy()
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, label, color in zip(
        panels, names[2:], ("the encoder", "the encoder with BM25"), (OURS, BOTH), strict=True
    ):
        own = found[name][counted]
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        axes.scatter(words, own, s=22, alpha=0.5, color=color, edgecolors="none")
        better, worse = int((own > words + 1e-6).sum()), int((own < words - 1e-6).sum())
        axes.set_title(
            f"{label}: mean {own.mean():.3f}\nbetter on {better} questions, worse on {worse}"
        )
        axes.set_xlabel(f"nDCG@10 of BM25 (mean {words.mean():.3f})")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    panels[0].set_ylabel("nDCG@10, a point a question")
    path = folder / "questions.png"
    figure.savefig(path, dpi=110)
    return [path]
