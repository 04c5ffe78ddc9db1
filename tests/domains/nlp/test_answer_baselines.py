import pytest
import torch

from domains.nlp.answer_baselines import baseline, sentence_overlap, sliding_window
from domains.nlp.answer_windows import windows_of
from domains.nlp.squad import Answer, Question
from domains.nlp.tokenizer import load_tokenizer

TEXT = "Ada wrote notes. In 1843 the engine of Babbage was described by Ada Lovelace! It was slow."


def asked(text, context=TEXT, answer="1843"):
    return Question("q", text, context, (Answer(answer, context.find(answer)),), "")


def test_the_sentence_that_shares_most_words():
    start, end = sentence_overlap(asked("When was the engine described?"))
    assert TEXT[start:end] == "In 1843 the engine of Babbage was described by Ada Lovelace!"
    assert sentence_overlap(asked("What else?")) == (0, len("Ada wrote notes."))
    assert sentence_overlap(asked("Who?", "no full stop")) == (0, len("no full stop"))
    assert sentence_overlap(asked("Version?", "Version 2.5 of it.\nNext")) == (0, 18)


def test_a_span_near_the_words_of_the_question_but_without_them():
    filler = " ".join(f"w{n}" for n in range(40))
    text = f"{filler} engine spoke engine {filler}"
    choose = sliding_window([asked("a", filler)])  # gold answers of one word
    start, end = choose(asked("The engine?", text))
    assert abs(text.index("spoke") - start) < 50
    assert text[start:end] != "engine"
    longer = sliding_window([asked("a", filler, answer="Ada wrote notes")])
    start, end = longer(asked("slow"))
    assert len(TEXT[start:end].split()) == 3
    assert choose(asked("x", "...")) == (0, 3)
    assert longer(asked("x", "one two")) == (0, 7)


def test_a_baseline_answers_in_the_form_of_the_task():
    questions = [asked("When was the engine described?"), asked("What?")._replace(answers=())]
    windows = windows_of(questions, load_tokenizer("minilm"), 64)
    prediction, target = baseline(sentence_overlap)(windows.of_questions([0, 1]))
    assert prediction.tolist() == [[17, 77, -torch.inf], [0, 16, -torch.inf]]
    assert target.tolist() == [[20, 24], [-1, -1]]


@pytest.mark.data
def test_tquad_by_shared_words(real_data, monkeypatch):
    from domains.nlp.answer_parts import benchmark_parts
    from domains.nlp.squad_metrics import f1

    monkeypatch.setenv("PLEIAD_DATA", str(real_data))
    parts = benchmark_parts("tquad")
    assert (len(parts.train), len(parts.val), len(parts.test)) == (5870, 405, 892)
    assert not parts.nullable
    assert "no training text stands in val or test too" in parts.notes
    spans = [(question, sentence_overlap(question)) for question in parts.test]
    scores = [f1(question.context[a:b], question.golds, ()) for question, (a, b) in spans]
    assert sum(scores) / len(scores) == pytest.approx(0.203, abs=0.001)
