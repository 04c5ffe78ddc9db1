"""Words and pieces on many scripts; windows lose no word and take each from the best place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from domains.nlp.alignment import Pieces, WordEncoder, windows
from domains.nlp.conll import read_conll
from domains.nlp.tokenizer import load_tokenizer

ODD = {
    "variation selector": "\ufe0f",
    "zero-width joiner": "\u200d",
    "control character": "\x00",
    "no-break space": "\u00a0",
    "line separator": "\u2028",
    "empty": "",
    "private use": "\ue415",
    "lone mark": "\u0301",
}
SCRIPTS = {
    "Bengali": "বাংলাদেশের",
    "Bengali with a joiner": "র\u200c্যাবের",
    "Arabic with vowels": "مُحَمَّدٌ",
    "Hindi": "हिन्दी",
    "Hebrew with points": "שָׁלוֹם",
    "Thai": "ภาษาไทย",
    "family": "👨‍👩‍👧",
    "flag": "🇧🇩",
    "heart": "❤️",
    "decomposed": "e\u0301le\u0300ve",
    "Chinese": "中文字",
    "two words": "New York",
    "punctuation": "don't",
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("minilm")


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return WordEncoder(tokenizer)


def alone(tokenizer, word):
    return tokenizer([[word]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]


def of_words(pieces):
    """The pieces of each word."""
    return [part.tolist() for part in np.split(pieces.ids, pieces.first[1:])]


@pytest.mark.parametrize("name", ODD)
def test_a_word_without_pieces_is_unknown_and_not_lost(encoder, tokenizer, name):
    (pieces,) = encoder([["a", ODD[name], "b"]])
    a, odd, b = of_words(pieces)
    assert a == alone(tokenizer, "a")
    assert b == alone(tokenizer, "b")
    assert odd == [tokenizer.unk_token_id]


@pytest.mark.parametrize("name", SCRIPTS)
def test_pieces_are_those_of_the_word_and_of_no_neighbour(encoder, tokenizer, name):
    word = SCRIPTS[name]
    (pieces,) = encoder([[word, "\u09be\u0301", word]])
    first, _, second = of_words(pieces)
    assert first == second == alone(tokenizer, word)
    assert len(first) >= 1


WORDS = st.lists(
    st.one_of(
        st.sampled_from([*ODD.values(), *SCRIPTS.values()]),
        st.text(max_size=6),
        st.text(st.characters(categories=["Mn", "Mc", "Cf", "Lo", "So"]), max_size=5),
    ),
    min_size=1,
    max_size=30,
)


@given(words=WORDS, capacity=st.integers(3, 40))
@settings(deadline=None)
def test_no_word_is_lost_whatever_the_script(encoder, tokenizer, words, capacity):
    words = [w.encode("utf-8", "replace").decode() for w in words]  # no half pairs
    (pieces,) = encoder([words])
    assert len(pieces.first) == len(words)
    assert of_words(pieces) == [alone(tokenizer, w) or [tokenizer.unk_token_id] for w in words]
    judged = []
    for window in windows(pieces, capacity):
        framed = encoder.framed(pieces, window)
        assert len(framed.ids) <= capacity + encoder.specials
        assert framed.ids[0] == tokenizer.cls_token_id
        assert framed.ids[-1] == tokenizer.sep_token_id
        places = encoder.places(pieces, window)
        own = range(window.first_word, window.last_word)
        assert framed.ids[places].tolist() == [of_words(pieces)[w][0] for w in own]
        judged += own
    assert judged == list(range(len(words)))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60), capacity=st.integers(3, 50))
def test_a_word_is_judged_where_it_is_farthest_from_a_cut(sizes, capacity):
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
    count = sum(sizes)
    pieces = Pieces(np.zeros(count, np.int32), first)
    cut = windows(pieces, capacity)
    spans = {(w.start, w.stop) for w in cut}
    for window in cut:
        for word in range(window.first_word, window.last_word):
            margins = {span: margin(int(first[word]), *span, count) for span in spans}
            assert margins[window.start, window.stop] == max(margins.values()) >= 0
            if len(spans) > 1:
                assert margins[window.start, window.stop] >= capacity // 6 - 1


def margin(place, start, stop, count):
    """Pieces between a place and the nearer cut of a window; below 0 outside."""
    if not start <= place < stop:
        return -1
    left = place - start if start > 0 else count
    right = stop - 1 - place if stop < count else count
    return min(left, right)


def test_windows_by_hand():
    pieces = Pieces(np.zeros(20, np.int32), np.arange(20, dtype=np.int32))
    # steps of 6: pieces 0-9, 6-15, 11-20; borders between 6..8 and 11..14
    assert windows(pieces, 9) == [(0, 9, 0, 8), (6, 15, 8, 13), (11, 20, 13, 20)]
    assert windows(pieces, 20) == [(0, 20, 0, 20)]


def test_a_word_longer_than_a_window_keeps_its_place(encoder):
    (pieces,) = encoder([["a", "ব" * 90, "b"]])
    cut = windows(pieces, 12)
    assert [w for window in cut for w in range(window.first_word, window.last_word)] == [0, 1, 2]
    assert all(window.stop - window.start == 12 for window in cut)


def test_a_sentence_without_words_has_neither_pieces_nor_windows(encoder):
    (pieces,) = encoder([[]])
    assert len(pieces.ids) == len(windows(pieces, 10)) == 0


@pytest.mark.parametrize("prefix", [True, False])
def test_byte_level_tokenizers_see_a_space_before_every_word(prefix):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(["so it is so it was"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="!")
    (pieces,) = WordEncoder(tokenizer)([["so", "it", "", "é"]])
    tokens = [tokenizer.convert_ids_to_tokens(part) for part in of_words(pieces)]
    assert tokens == [["Ġso"], ["Ġit"], ["!"] if prefix else ["Ġ"], ["Ġ", "Ã", "©"]]


@pytest.mark.data
@pytest.mark.parametrize("name", ["bangla/Bengali-NER/train_data.txt", "wnut17/wnut17train.conll"])
def test_real_text_is_aligned_as_the_whole_sentence_would_be(real_data, encoder, tokenizer, name):
    sentences = [s.words for s in read_conll(real_data / "nlp" / name).sentences[:500]]
    for words, pieces in zip(sentences, encoder(sentences), strict=True):
        parts = of_words(pieces)
        assert len(parts) == len(words)
        whole = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)
        of_whole = [[] for _ in words]
        for number, word in zip(whole["input_ids"], whole.word_ids(), strict=True):
            of_whole[word].append(number)
        unknown = [tokenizer.unk_token_id]
        assert parts == [part or unknown for part in of_whole]
        judged = [w for cut in windows(pieces, 30) for w in range(cut.first_word, cut.last_word)]
        assert judged == list(range(len(words)))
