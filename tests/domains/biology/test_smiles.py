import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from domains.biology.smiles import PATTERN, SPECIALS, SmilesTokenizer, split

ATOMS = ["C", "c", "Cl", "Br", "B", "N", "[nH]", "[C@@H]", "[13CH3-]", "(", ")", "=", "#", "1"]
ATOMS += ["%12", "/", "\\", ".", "*", "$", "~", ":", "@", "?", ">", "-", "+", "o", "s", "P", "I"]


@pytest.mark.parametrize(
    ("smiles", "tokens"),
    [
        ("BrCCl", ["Br", "C", "Cl"]),
        ("C%123", ["C", "%12", "3"]),
        ("[Na+].[Cl-]", ["[Na+]", ".", "[Cl-]"]),
        ("CB(C)b", ["C", "B", "(", "C", ")", "b"]),
        ("F/C=C\\F", ["F", "/", "C", "=", "C", "\\", "F"]),
        ("", []),
    ],
)
def test_tokens_are_the_longest_that_stand_first(smiles, tokens):
    assert split(smiles) == tokens


@given(st.lists(st.sampled_from(ATOMS)))
def test_no_character_is_lost(tokens):
    smiles = "".join(tokens)
    assert "".join(split(smiles)) == smiles


@given(st.text(alphabet="CNclBr[]()=1%é <", max_size=20))
def test_every_character_is_matched_or_told(smiles):
    found = PATTERN.findall(smiles)
    if "".join(found) == smiles:
        assert split(smiles) == found
    else:
        with pytest.raises(UserError, match="is no token of a SMILES string"):
            split(smiles)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("CCX", r"'CCX': 'X' at character 3 "),
        ("C C", r"' ' at character 2 "),
        ("C%1", r"'%' at character 2 "),
        ("C[CX", r"'\[', 'X' at character 2 "),
        ("C[]C", r"'\[', '\]' at character 2 "),
    ],
)
def test_characters_of_no_token_are_an_error_that_names_them(smiles, message):
    with pytest.raises(UserError, match=message):
        split(smiles)


def test_a_vocabulary_is_built_by_frequency():
    tokenizer = SmilesTokenizer.build(["CCO", "CCN", "C[nH]C"])
    assert tokenizer.tokens == (*SPECIALS, "C", "N", "O", "[nH]", "<unk>")
    assert SmilesTokenizer.build(["CCO", "CCN", "OC"], least=2).tokens == (
        *SPECIALS,
        *("C", "O", "<unk>"),
    )


def test_unknown_tokens_are_marked_and_written_out():
    tokenizer = SmilesTokenizer.build(["CCO"])
    ids = tokenizer.encode("CSO")
    assert ids.tolist() == [0, 4, 6, 5, 1]
    assert tokenizer.unknown == 6
    assert tokenizer.decode(ids) == "C<unk>O"
    assert tokenizer.encode("CO", closed=False).tolist() == [0, 4, 5]


def test_what_follows_the_end_is_not_decoded():
    tokenizer = SmilesTokenizer.build(["CCO"])
    assert tokenizer.decode([0, 4, 3, 5, 1, 4, 4, 2]) == "CO"


def test_survives_json():
    tokenizer = SmilesTokenizer.build(["C[C@H](O)\\N"])
    loaded = SmilesTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert loaded.tokens == tokenizer.tokens
    assert loaded.encode("CON").tolist() == tokenizer.encode("CON").tolist()


def test_a_users_vocabulary_is_read_from_lines_or_json(tmp_path):
    tokens = [*SPECIALS, "C", "[nH]", "<unk>"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (tmp_path / "vocab.json").write_text(
        json.dumps({token: number for number, token in reversed(list(enumerate(tokens)))})
    )
    for name in ("vocab.txt", "vocab.json"):
        assert SmilesTokenizer.from_file(tmp_path / name).tokens == tuple(tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["<pad>", "C", "<unk>"], "token 0 is '<pad>' and must be '<bos>'"),
        (["<bos>"], "token 1 is 'nothing' and must be '<eos>'"),
        ([*SPECIALS, "C"], "the last token is 'C' and must be '<unk>'"),
        ([*SPECIALS, "C", "N", "C", "<unk>"], "token 6, 'C', is there twice"),
        ([*SPECIALS, "CC", "<unk>"], "token 4, 'CC', is none of a SMILES string"),
    ],
)
def test_another_form_of_vocabulary_is_refused(tmp_path, tokens, message):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tokens))
    with pytest.raises(UserError, match=message) as caught:
        SmilesTokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_numbers_with_gaps_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<bos>": 0, "C": 2}))
    with pytest.raises(UserError, match="must map each token to its number, from 0 on"):
        SmilesTokenizer.from_file(tmp_path / "vocab.json")


def test_the_published_vocabulary_is_read():
    path = Path(os.environ.get("PLEIAD_GOLDEN", "")) / "molformer_vocab.txt"
    if not path.is_file():
        pytest.skip("PLEIAD_GOLDEN has no published vocabulary")
    tokenizer = SmilesTokenizer.from_file(path)
    assert len(tokenizer) == 2362
    assert tokenizer.unknown == 2361
    assert tokenizer.encode("Cc(").tolist() == [0, 4, 5, 6, 1]
    assert sum(token.startswith("[") for token in tokenizer.tokens) == 2232


@pytest.mark.data
def test_real_molecules_survive_and_the_published_vocabulary_knows_them(real_data):
    path = Path(os.environ.get("PLEIAD_GOLDEN", "")) / "molformer_vocab.txt"
    if not path.is_file():
        pytest.skip("PLEIAD_GOLDEN has no published vocabulary")
    tokenizer = SmilesTokenizer.from_file(path)
    folder = real_data / "biology" / "gp_molformer_pairtune"
    molecules = (folder / "qed" / "test.txt").read_text().split()
    molecules += (folder / "drd2" / "target.txt").read_text().split()
    assert len(molecules) > 5000
    kept = [smiles for smiles in molecules if tokenizer.decode(tokenizer.encode(smiles)) == smiles]
    assert len(kept) >= 0.999 * len(molecules)
