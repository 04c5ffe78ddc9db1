"""The tokens of cells beside a loop over genes, and what may not change them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from core.errors import UserError
from domains.biology.cell_tokens import (
    ABSENT,
    CellTokenizer,
    binned,
    nonzero_medians,
    per_total,
)

GENES = [f"ENSG{number:04d}" for number in range(40)]


def counts_of(cells=20, genes=40, seed=0, share=0.5):
    """Counts with many ties and zeros, and a cell with nothing at all."""
    draw = np.random.default_rng(seed)
    counts = draw.poisson(2, (cells, genes)) * (draw.random((cells, genes)) < share)
    counts[3] = 0
    return counts


def made(genes=GENES, length=2048, bins=None, medians=True):
    draw = np.random.default_rng(5)
    scale = {gene: float(draw.integers(1, 5)) / 2 for gene in genes} if medians else None
    return CellTokenizer.build(genes, scale, length, bins)


def tokens(tokenizer, counts, genes=GENES):
    return tokenizer.tokenize(csr_array(counts), tokenizer.columns(genes), tokenizer.scales(genes))


def by_hand(tokenizer, cell, genes):
    """The ids of one cell, gene by gene."""
    total = float(cell.sum())
    found = []
    for column, (gene, count) in enumerate(zip(genes, cell, strict=True)):
        if count > 0 and gene in tokenizer.tokens:
            value = count / total * 10_000 / tokenizer.medians.get(gene, 1.0)
            found.append((-value, column, tokenizer.tokens.index(gene)))
    return [token for _, _, token in sorted(found)][: tokenizer.length]


@pytest.mark.parametrize("length", [2048, 7])
def test_tokens_are_those_of_a_loop(length):
    known = GENES[:33]  # the others are not in the vocabulary
    tokenizer = made(known, length)
    del tokenizer.medians[known[4]]
    counts = counts_of()
    found = tokens(tokenizer, counts)
    assert found.values is None
    for row, cell in enumerate(counts):
        want = by_hand(tokenizer, cell, GENES)
        assert found.ids[row][found.mask[row]].tolist() == want
        assert (found.ids[row][~found.mask[row]] == tokenizer.padding).all()
        assert found.mask[row].sum() == len(want)
        assert found.mask[row, : len(want)].all()
    assert not found.mask[3].any()


def test_a_cell_of_more_genes_than_fit_keeps_the_most_expressed():
    genes = [f"G{number}" for number in range(3000)]
    counts = np.random.default_rng(0).permutation(3000)[None] + 1
    tokenizer = made(genes, medians=False)
    found = tokens(tokenizer, counts, genes)
    assert found.ids.shape == (1, 2048)
    assert found.mask.all()
    assert counts[0][found.ids[0].numpy() - 2].tolist() == list(range(3000, 952, -1))


def test_equal_genes_keep_their_order():
    tokenizer = made(medians=False)
    found = tokens(tokenizer, np.ones((1, 40), int))
    assert found.ids[0].tolist() == list(range(2, 42))


def test_columns_in_any_order_of_storage_give_the_same():
    counts = counts_of(share=0.9)
    tokenizer = made()
    shuffled = csr_array(counts)
    for start, end in zip(shuffled.indptr[:-1], shuffled.indptr[1:], strict=True):
        turn = np.random.default_rng(start).permutation(end - start) + start
        shuffled.indices[start:end] = shuffled.indices[turn]
        shuffled.data[start:end] = shuffled.data[turn]
    shuffled.has_sorted_indices = False
    arguments = tokenizer.columns(GENES), tokenizer.scales(GENES)
    found = tokenizer.tokenize(shuffled, *arguments)
    assert np.array_equal(found.ids, tokens(tokenizer, counts).ids)


@given(st.integers(0, 1000), st.integers(1, 1000), st.sampled_from([None, 11]))
@settings(max_examples=40, deadline=None)
def test_depth_of_sequencing_changes_nothing(seed, times, bins):
    tokenizer = made(bins=bins)
    counts = counts_of(4, seed=seed)
    one, other = tokens(tokenizer, counts), tokens(tokenizer, counts * times)
    assert np.array_equal(one.ids, other.ids)
    if bins:
        assert np.array_equal(one.values, other.values)


def test_the_number_of_cells_in_a_block_changes_nothing():
    tokenizer = made(bins=9)
    counts = counts_of()
    whole = tokens(tokenizer, counts)
    for row in range(len(counts)):
        alone = tokens(tokenizer, counts[row : row + 1])
        some = alone.mask[0]
        assert np.array_equal(alone.ids[0][some], whole.ids[row][whole.mask[row]])
        assert np.array_equal(alone.values[0][some], whole.values[row][whole.mask[row]])


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=60),
    st.integers(2, 12),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_bins_rise_with_the_value_and_zeros_have_none(values, bins, empty):
    ordered = np.array([sorted(values, reverse=True) + [-np.inf] * empty])
    found = binned(ordered, np.array([len(values)]), bins)[0]
    inside, outside = found[: len(values)], found[len(values) :]
    assert (outside == 0).all()
    assert inside.min() >= 1
    assert inside.max() <= bins - 1
    assert (np.diff(inside) <= 0).all()
    same = np.diff(ordered[0, : len(values)]) == 0
    assert (np.diff(inside)[same] == 0).all()


def test_bins_of_values_without_ties_are_of_equal_size():
    ordered = np.sort(np.random.default_rng(0).lognormal(size=(1, 1000)))[:, ::-1]
    found = binned(ordered, np.array([1000]), 51)[0]
    assert np.bincount(found).tolist() == [0] + [20] * 50


def test_values_are_the_bins_of_the_genes_beside_them():
    tokenizer = made(length=9, bins=5)
    counts = counts_of()
    found = tokens(tokenizer, counts)
    whole = tokens(made(bins=5), counts)
    assert found.values.shape == found.ids.shape == (20, 9)
    assert np.array_equal(found.values, whole.values[:, :9])  # bins are those of the whole cell
    assert (found.values[~found.mask] == 0).all()
    assert (found.values[found.mask] >= 1).all()


def test_medians_are_those_of_numpy():
    counts = counts_of(31)
    counts[:, 7] = 0
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    scaled = counts / totals * 10_000
    want = [np.median(column[column > 0]) if column.any() else np.nan for column in scaled.T]
    found = nonzero_medians(csr_array(counts))
    np.testing.assert_allclose(found, want, rtol=1e-12)
    assert np.isnan(found[7])


def test_stored_zeros_count_as_none():
    counts = csr_array((np.array([0.0, 0.0, 3.0]), [1, 2, 0], [0, 2, 3]), shape=(2, 3))
    tokenizer = made(GENES[:3])
    found = tokenizer.tokenize(counts, tokenizer.columns(GENES[:3]), tokenizer.scales(GENES[:3]))
    assert found.mask.tolist() == [[False], [True]]
    assert per_total(counts).tolist() == [0, 0, 10_000]
    assert np.isnan(nonzero_medians(counts)[1:]).all()


def test_unknown_genes_have_no_token_but_count_in_the_total():
    tokenizer = made(GENES[:2], medians=False)
    assert tokenizer.columns(["x", GENES[1]]).tolist() == [ABSENT, 3]
    found = tokens(tokenizer, np.array([[5, 1]]), ["x", GENES[1]])
    assert found.ids.tolist() == [[3]]


def test_survives_json():
    tokenizer = made(length=12, bins=4)
    loaded = CellTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    counts = counts_of()
    one, other = tokens(tokenizer, counts), tokens(loaded, counts)
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.values, other.values)


def test_a_published_vocabulary_is_read(tmp_path):
    (tmp_path / "vocab.txt").write_text("ENSG1\nENSG2\nold\n")
    added = {"<mask>": 2, "<pad>": 3, "T_cell": 4}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "medians.json").write_text(json.dumps({"ENSG2": 4.0}))
    tokenizer = CellTokenizer.from_published(tmp_path, tmp_path / "medians.json", length=5)
    assert tokenizer.tokens == ("ENSG1", "ENSG2", "<mask>", "<pad>", "T_cell")
    assert (tokenizer.padding, tokenizer.mask, tokenizer.length) == (3, 2, 5)
    found = tokens(tokenizer, np.array([[2, 3], [0, 1]]), ["ENSG1", "ENSG2"])
    assert found.ids.tolist() == [[0, 1], [1, 3]]
    (tmp_path / "added_tokens.json").write_text(json.dumps(added | {"far": 9}))
    with pytest.raises(UserError, match=r"added_tokens\.json: no token has the number 5"):
        CellTokenizer.from_published(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["<pad>", "<mask>", "A", "A"],), "has 'A' twice"),
        ((["<pad>", "A"],), "has no '<mask>'"),
        ((["<pad>", "<mask>", "A"], {"A": 0.0}), "gene 'A': its median 0.0"),
        ((["<pad>", "<mask>", "A"], None, 0), "length=0"),
        ((["<pad>", "<mask>", "A"], None, 5, 1), "bins=1"),
    ],
)
def test_what_will_not_do_is_told(arguments, message):
    with pytest.raises(UserError, match=message):
        CellTokenizer(*arguments)
