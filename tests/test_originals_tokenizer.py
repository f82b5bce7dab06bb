"""GPT-1's encoder and merges, and Google's vocab.txt, as tokenizers. The real files are not here: see below."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import transformers

from fastlm.data import DataError
from fastlm.integrations.originals import read_google_tokenizer, read_openai_tokenizer

TEXTS = (
    "It was late.",
    "Café naïve",
    "中文 x",
    "a\tb\u200b\ufffd\x00\x07c\nd",
    "",
    " ",
    "don't--stop!!! U.S. 3.5",
    "ﬁ…",
)
ENTRIES = (
    "<unk>",
    *"itwalefcnvxdosup.,!'-35",
    *(f"{c}</w>" for c in "itwalefcnvxdosup.,!'-35"),
    "th",
    "la",
    "la te</w>",
)


def small(folder: Path) -> Path:
    (folder / "encoder_bpe_40000.json").write_text(
        json.dumps({entry: number for number, entry in enumerate((*ENTRIES[:-1], "te</w>", "late</w>"))})
    )
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\nl a\nt e</w>\nla te</w>\n")
    return folder


@pytest.fixture(params=["small", "real"])
def folder(request, tmp_path) -> Path:
    if request.param == "small":
        return small(tmp_path)
    if "FASTLM_TEST_GPT1_BPE" not in os.environ:
        pytest.skip("FASTLM_TEST_GPT1_BPE names no folder with OpenAI's encoder_bpe_40000.json and vocab_40000.bpe")
    return Path(os.environ["FASTLM_TEST_GPT1_BPE"])


def test_the_ids_are_those_of_transformers(folder):
    encoder = json.loads((folder / "encoder_bpe_40000.json").read_text())
    lines = (folder / "vocab_40000.bpe").read_text().split("\n")[1:]
    theirs = transformers.OpenAIGPTTokenizer(vocab=encoder, merges=[tuple(line.split()) for line in lines if line])
    ours = read_openai_tokenizer(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.vocab_size == len(encoder) and ours.unknown == encoder["<unk>"]
    assert ours.encode("late") == [encoder["late</w>"]]


def test_damaged_files_are_named(tmp_path):
    assert read_openai_tokenizer(tmp_path) is None and read_google_tokenizer(tmp_path) is None
    small(tmp_path)
    (tmp_path / "vocab_40000.bpe").write_text("#version: 0.2\na b c\n")
    with pytest.raises(DataError, match=r"vocab_40000\.bpe: two parts per line expected, got 'a b c' as merge 0"):
        read_openai_tokenizer(tmp_path)
    (tmp_path / "vocab_40000.bpe").unlink()
    with pytest.raises(DataError, match=r"vocab_40000\.bpe: no such file; it goes with encoder_bpe_40000\.json"):
        read_openai_tokenizer(tmp_path)


def test_a_cased_vocabulary_of_google_keeps_the_case(tmp_path):
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a")
    (tmp_path / "vocab.txt").write_text("\n".join(specials))
    assert read_google_tokenizer(tmp_path).encode("A " + "a" * 200 + " " + "a" * 201) == [5, 5, *[6] * 199, 1]
    (tmp_path / "vocab.txt").write_text("\n".join((*specials, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
    assert read_google_tokenizer(tmp_path).encode("A a") == [7, 5]
