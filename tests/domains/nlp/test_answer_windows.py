import numpy as np
import pytest

from core.errors import UserError
from domains.nlp.answer_windows import UNKNOWN, windows_of
from domains.nlp.squad import Answer, Question
from domains.nlp.tokenizer import load_tokenizer

WORDS = [f"word{n}" for n in range(60)]
CONTEXT = " ".join(WORDS)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("minilm")


def question(answer="word30", context=CONTEXT, text="Which word is it?", **more):
    start = context.index(answer) if answer else None
    answers = (Answer(answer, start),) if answer else ()
    return Question("q", text, context, answers, "")._replace(**more)


def texts(windows, tokenizer):
    return [tokenizer.decode(windows.encoded(n).ids) for n in range(len(windows))]


def test_windows_are_those_of_the_tokenizer(tokenizer):
    windows = windows_of([question()], tokenizer, max_length=48, stride=0.5)
    room = 48 - 3 - len(tokenizer("Which word is it?", add_special_tokens=False)["input_ids"])
    theirs = tokenizer(
        *("Which word is it?", CONTEXT),
        max_length=48,
        truncation="only_second",
        stride=room - room // 2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert len(windows) == len(theirs["input_ids"]) > 3
    batch = windows.batch(range(len(windows)))
    for n, (ids, types) in enumerate(
        zip(theirs["input_ids"], theirs["token_type_ids"], strict=True)
    ):
        assert windows.encoded(n).ids.tolist() == ids
        assert windows.encoded(n).types.tolist() == types
        assert windows.lengths[n] == len(ids)
        inside = np.array(theirs.sequence_ids(n)) == 1
        offsets = batch.offsets[n].numpy()
        assert (offsets[: len(ids)][inside] == np.array(theirs["offset_mapping"][n])[inside]).all()
        assert (offsets[: len(ids)][~inside] == -1).all()
        assert (offsets[len(ids) :] == -1).all()


def test_gold_positions_point_at_the_answer(tokenizer):
    windows = windows_of([question("word30 word31")], tokenizer, max_length=48)
    batch = windows.batch(range(len(windows)))
    held = 0
    for n, (start, end) in enumerate(batch.positions.tolist()):
        if start == 0:
            assert end == 0
            assert not windows.answered[n]
            continue
        held += 1
        chars = batch.offsets[n, start, 0], batch.offsets[n, end, 1]
        assert CONTEXT[slice(*chars)] == "word30 word31"
        assert windows.answered[n]
    assert held in (1, 2)


def test_every_token_is_in_a_window_and_every_short_answer_whole_in_one(tokenizer):
    for stride in (1 / 3, 0.5, 1.0):
        windows = windows_of([question()], tokenizer, max_length=40, stride=stride)
        batch = windows.batch(range(len(windows)))
        seen = {int(start) for start in batch.offsets[..., 0].flatten() if start >= 0}
        assert {CONTEXT.index(word) for word in WORDS} <= seen
    for word in WORDS[:10]:
        windows = windows_of([question(f"{word} ")], tokenizer, max_length=40, stride=0.5)
        assert windows.answered.any()


def test_half_a_token_marks_the_whole_one(tokenizer):
    asked = question(None, context="unbelievable things", answers=(Answer("lie", 4),))
    windows = windows_of([asked], tokenizer, max_length=40)
    (position,) = windows.batch([0]).positions.tolist()
    offsets = windows.batch([0]).offsets[0]
    assert offsets[position[0], 0] <= 4
    assert offsets[position[1], 1] >= 7


def test_no_answer_points_at_the_first_token_and_a_lost_one_nowhere(tokenizer):
    asked = [
        question(None),
        question(answers=None),
        question(answers=(Answer("elsewhere", None),)),
        question(answers=(Answer("elsewhere", None), Answer("word3", CONTEXT.index("word3")))),
    ]
    windows = windows_of(asked, tokenizer, max_length=512)
    assert windows.batch(range(3)).positions[:, 0].tolist() == [0, UNKNOWN, UNKNOWN]
    assert windows.answered.tolist() == [False, False, False, True]
    assert windows.unlabelled == 2


def test_a_batch_of_questions_holds_all_their_windows(tokenizer):
    asked = [question(), question(context="word30 only"), question("word59")]
    windows = windows_of(asked, tokenizer, max_length=48)
    batch = windows.of_questions([2, 1])
    assert batch.rows.tolist() == [2, 1]
    assert [one.context for one in batch.asked] == [CONTEXT, "word30 only"]
    many = int(windows.borders[3] - windows.borders[2])
    assert batch.owner.tolist() == [0] * many + [1]
    assert batch.tokens.ids.shape[0] == many + 1
    assert batch.tokens.mask.sum(1).tolist() == [
        *windows.lengths[windows.borders[2] :].tolist(),
        int(windows.lengths[windows.borders[1]]),
    ]


def test_equal_contexts_are_kept_once(tokenizer):
    windows = windows_of([question(), question("word5"), question(None)], tokenizer, 64)
    assert len(windows._contexts) == 1
    assert windows.pad_id == tokenizer.pad_token_id


def test_long_questions_are_cut_and_counted(tokenizer):
    asked = question(text="why " * 100)
    windows = windows_of([asked, question()], tokenizer, max_length=64)
    assert windows.shortened == 1
    assert windows.lengths.max() == 64
    assert windows.encoded(0).types.tolist().count(0) == (64 - 3) // 2 + 2


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"max_length": 18}, "data.max_length=18 leaves no room"),
        ({"max_length": 64, "stride": 0.0}, "data.stride=0.0 must lie above 0"),
        ({"max_length": 64, "stride": 1.5}, "data.stride=1.5 must lie above 0"),
    ],
)
def test_settings_without_room_are_refused(tokenizer, kwargs, told):
    with pytest.raises(UserError, match=told):
        windows_of([question()], tokenizer, **kwargs)


def test_a_context_without_tokens_is_refused(tokenizer):
    with pytest.raises(UserError, match="question 'q': its context holds no token"):
        windows_of([question(None, context="\u200b\u0301")], tokenizer, max_length=64)
