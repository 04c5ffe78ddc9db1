import json

import pytest

from core.errors import UserError
from data.errors import DataError
from domains.nlp.encoding import encode
from domains.nlp.tokenizer import check_vocabulary, fingerprint, load_tokenizer, tokenizer_files

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(str(tiny_bert))


def test_it_is_loaded_once(tiny_bert, tokenizer):
    assert load_tokenizer(str(tiny_bert)) is tokenizer
    assert tokenizer("a b", "c")["input_ids"] == [101, 1037, 1038, 102, 1039, 102]


def test_its_files_are_all_that_plain_transformers_needs(tokenizer, tmp_path):
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert type(again) is type(tokenizer)
    for text in ("Straße, façade & naïve", "e\u0301te\u0301", "", "[SEP] in the text"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert fingerprint(again) == fingerprint(tokenizer)


def test_what_was_asked_last_changes_nothing(tokenizer):
    before, files = fingerprint(tokenizer), tokenizer_files(tokenizer)
    encode(tokenizer, ["one two three four five six"], max_length=4)  # it was cut
    assert fingerprint(tokenizer) == before
    assert tokenizer_files(tokenizer) == files
    encode(tokenizer, ["one"], max_length=4)
    tokenizer(["a", "b c"], padding=True)
    assert fingerprint(tokenizer) == before


def test_another_vocabulary_is_another_tokenizer(tokenizer, tmp_path):
    files = tokenizer_files(tokenizer)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    described = json.loads(files["tokenizer_config.json"])
    described["do_lower_case"] = False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    assert fingerprint(load_tokenizer(str(tmp_path))) != fingerprint(tokenizer)


def test_an_end_serves_as_padding(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"a": 0, "<end>": 1, "<unk>": 2}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", unk_token="<unk>"
    )
    wrapped.save_pretrained(tmp_path / "end")
    assert load_tokenizer(str(tmp_path / "end")).pad_token_id == 1
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="its tokenizer has no token for padding"):
        load_tokenizer(str(tmp_path / "none"))


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="its tokenizer cannot be read") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text("{not json")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        load_tokenizer(str(tmp_path / "other"))
    with pytest.raises(UserError, match="is no folder with a tokenizer"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no such file or folder"):
        load_tokenizer("no_such_model")


def test_every_token_must_be_known(tokenizer):
    check_vocabulary(tokenizer, 30522, "minilm")
    with pytest.raises(
        UserError, match=r"tokens up to 30521, and the network knows 30000"
    ) as error:
        check_vocabulary(tokenizer, 30000, "minilm")
    assert "--model.network.config.vocab_size=30522" in str(error.value)
