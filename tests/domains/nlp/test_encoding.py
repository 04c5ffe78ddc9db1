import pytest

from core.errors import UserError
from domains.nlp import encoding
from domains.nlp.encoding import encode
from domains.nlp.tokenizer import load_tokenizer

LONG = " ".join(f"word{n}" for n in range(60))
TEXTS = [
    "A plain sentence.",
    "আমি বাংলায় গান গাই",
    "\u0130stanbul'da \u0131\u015f\u0131k \u015f\u00f6yle",  # Turkish
    "family 👨‍👩‍👧 and 😀",
    "e\u0301 n\u0303 a\u030a\u0323",
    "",
    "line\u2028separator\x85next",
    "[MASK] and [SEP] as words",
    LONG,
]
PAIRS = [f"second {n}" for n in range(len(TEXTS))]
CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(str(tiny_bert))


def plain(tokenizer, *texts):
    return tokenizer(*texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("long_input", ["truncate", "head_tail", "window"])
def test_where_nothing_is_cut_it_is_the_call_of_the_tokenizer(tokenizer, pairs, long_input):
    found = encode(tokenizer, TEXTS, pairs, 512, long_input)
    expected = tokenizer(TEXTS, pairs)
    assert len(found) == len(TEXTS)
    assert found.longer.tolist() == [0]
    assert found.rows.tolist() == [1] * len(TEXTS)
    for n in range(len(TEXTS)):
        (window,) = found.windows(n)
        assert window.ids.tolist() == expected["input_ids"][n]
        assert window.types.tolist() == expected["token_type_ids"][n]
    assert found.tokens.tolist() == [len(ids) for ids in expected["input_ids"]]


@pytest.mark.parametrize("pairs", [None, PAIRS, [LONG] * len(TEXTS)])
def test_a_text_cut_at_its_end_is_the_call_of_the_tokenizer(tokenizer, pairs):
    found = encode(tokenizer, TEXTS, pairs, 24, "truncate")
    expected = tokenizer(TEXTS, pairs, truncation=True, max_length=24)
    assert [found.windows(n)[0].ids.tolist() for n in range(len(TEXTS))] == expected["input_ids"]
    assert [found.windows(n)[0].types.tolist() for n in range(len(TEXTS))] == (
        expected["token_type_ids"]
    )
    full = tokenizer(TEXTS, pairs)["input_ids"]
    assert found.longer.tolist() == [sum(len(ids) > 24 for ids in full)]


@pytest.mark.parametrize("max_length", [11, 16, 33, 64])
@pytest.mark.parametrize("text", [LONG, "আমি বাংলায় গান গাই " * 9, "e\u0301😀 " * 90, "a [SEP] " * 40])
def test_every_token_is_in_a_window(tokenizer, text, max_length):
    found = encode(tokenizer, ["short", text], None, max_length, "window")
    whole = plain(tokenizer, text)
    windows = [window.ids.tolist() for window in found.windows(1)]
    assert all(ids[0] == CLS and ids[-1] == SEP and len(ids) <= max_length for ids in windows)
    room = max_length - 2
    step = room - room // 4
    assert [ids[1:-1] for ids in windows] == [
        whole[begin : begin + room]
        for begin in range(0, max(len(whole) - room, 0) + step, step)
        if begin == 0 or begin < len(whole) - (room - step)
    ]
    assert found.rows.tolist() == [1, len(windows)]
    assert found.longer.tolist() == [1]
    assert found.tokens.tolist() == [3, max(map(len, windows))]


def test_the_second_text_of_a_pair_is_put_into_windows(tokenizer):
    question = "what is it ?"
    found = encode(tokenizer, [question] * 2, [LONG, "short"], 32, "window")
    first, second = plain(tokenizer, question), plain(tokenizer, LONG)
    begin = [CLS, *first, SEP]
    seen = []
    for window in found.windows(0):
        ids, types = window.ids.tolist(), window.types.tolist()
        assert ids[: len(begin)] == begin
        assert ids[-1] == SEP
        assert len(ids) <= 32
        assert types == [0] * len(begin) + [1] * (len(ids) - len(begin))
        seen.append(ids[len(begin) : -1])
    overlap = (32 - len(begin) - 1) // 4
    joined = seen[0] + [token for each in seen[1:] for token in each[overlap:]]
    assert joined == second
    assert found.rows.tolist() == [len(seen), 1]
    with pytest.raises(UserError, match="leaves no room for windows of the second"):
        encode(tokenizer, [LONG], [LONG], 32, "window")


@pytest.mark.parametrize("max_length", [3, 4, 9, 32, 61])
def test_the_middle_is_left_out(tokenizer, max_length):
    found = encode(tokenizer, [LONG, "x"], None, max_length, "head_tail")
    whole = plain(tokenizer, LONG)
    (window,) = found.windows(0)
    ids = window.ids.tolist()
    kept = max_length - 2
    head = -(-kept // 2)
    assert ids == [CLS, *whole[:head], *whole[len(whole) - (kept - head) :], SEP]
    assert found.longer.tolist() == [1]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (LONG, "x y", (27, 2)),  # 32 less 3 of the template
        ("x y", LONG, (2, 27)),
        (LONG, LONG, (15, 14)),
        (LONG, " ".join(["x"] * 14), (15, 14)),
        (" ".join(["x"] * 16), LONG, (15, 14)),
        ("a [SEP] b", LONG, (3, 26)),
    ],
)
def test_of_pairs_the_middle_of_the_longer_is_left_out(tokenizer, first, second, kept):
    found = encode(tokenizer, [first], [second], 32, "head_tail")
    (window,) = found.windows(0)
    expected, types = [CLS], [0]
    for kind, (text, count) in enumerate(zip((first, second), kept, strict=True)):
        tokens = plain(tokenizer, text)
        head = -(-count // 2)
        expected += [*tokens[:head], *tokens[len(tokens) - (count - head) :], SEP]
        types += [kind] * (count + 1)
    types[0] = 0
    assert window.ids.tolist() == expected
    assert window.types.tolist() == types
    assert len(window.ids) == 32


@pytest.mark.parametrize(("pairs", "most"), [(None, 2), (["b"], 3)])
def test_no_room_for_a_token(tokenizer, pairs, most):
    with pytest.raises(UserError, match=f"max_length={most} has no room beside the {most} special"):
        encode(tokenizer, ["a"], pairs, most)


@pytest.mark.parametrize("long_input", ["truncate", "head_tail", "window"])
def test_chunks_and_the_cache_change_nothing(tokenizer, monkeypatch, long_input):
    expected = encode(tokenizer, PAIRS, TEXTS, 20, long_input)
    monkeypatch.setattr(encoding, "CHUNK", 2)
    monkeypatch.setattr(encoding, "KEPT", 0)
    for _ in range(2):  # made, then taken from the cache
        found = encode(tokenizer, PAIRS, TEXTS, 20, long_input)
        for one, other in zip(found, expected, strict=True):
            assert one.tolist() == other.tolist()
            assert one.dtype == other.dtype
    changed = encode(tokenizer, PAIRS, [*TEXTS[:-1], "other"], 20, long_input)
    assert changed.ids.tolist() != expected.ids.tolist()
    assert len(encode(tokenizer, PAIRS, TEXTS, 19, long_input).windows(8)[0].ids) <= 19


def test_no_texts(tokenizer):
    found = encode(tokenizer, [])
    assert len(found) == 0
    assert found.tokens.tolist() == found.rows.tolist() == []
