"""GPT-1's encoder and merges, and Google's vocab.txt, as tokenizers. The real files are not here: see below."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import transformers

from fastlm.data import DataError, Tokenizer, original_text
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


# A text, and the words of OpenAI's steps.
STEPS = {
    "It was late.": ("it", "was", "late", "."),
    "Don't — stop!!!": ("do", "n't", "-", "stop", "!", "!", "!"),
    "a…b ´c´": ("a", "...", "b", "'", "c", "'"),
    "one \n\n  two\tthree": ("one", "\n", "two", "three"),
    "U.S. 3.5 (x) [y]//z": ("u.s.", "3.5", "(", "x", ")", "[", "y", "]", "//", "z"),
    "itâ€™s the ﬁle": ("it", "'s", "the", "file"),
    "": (),
}


@pytest.mark.parametrize("text", STEPS)
def test_the_steps_of_openais_code(text):
    for package in ("ftfy", "spacy"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'fastlm[original]'")
    assert tuple(original_text.words_of(text).split(" ") if text else ()) == STEPS[text]


def test_runs_of_punctuation_and_white_space_before_words_are_split():
    assert original_text.standardize("a--b!!?  c\t\td \n\n e_f {g}") == "a -- b !!  ?  c d \n e _ f { g }".replace(
        "  ", " "
    )
    assert original_text.standardize(" —–― … ´ ") == "--- ... '"


def test_a_tokenizer_with_openais_steps_says_so_and_takes_them(folder, tmp_path, monkeypatch):
    """Without the libraries, the repair and the split of words are replaced by simple ones."""
    monkeypatch.setattr(original_text, "_libraries", lambda: (lambda text: text, lambda text: text.split(" ")))
    read_openai_tokenizer(folder, "original").save(tmp_path / "saved.json")
    tokenizer = Tokenizer.load(tmp_path / "saved.json")
    assert tokenizer.text_steps == "original" and read_openai_tokenizer(folder).text_steps == "own"
    encoder = json.loads((folder / "encoder_bpe_40000.json").read_text())
    late, dash = encoder["late</w>"], encoder["-</w>"]
    line_break = encoder.get("\n</w>", 0)
    assert tokenizer.encode("Late — LATE\n\nlate") == [late, dash, late, line_break, late]
    assert tokenizer.encode_corpus(["late", "—"]) == [[late], [dash]]
    with pytest.raises(DataError, match="no spans of the text are known"):
        tokenizer.encode_with_offsets(["late"])
    with pytest.raises(ValueError, match="text_steps: one of transformers, original expected, got 'spacy'"):
        read_openai_tokenizer(folder, "spacy")


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    original_text._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ModuleNotFoundError, match=r"ftfy is not installed, .*: pip install 'fastlm\[original\]'"):
        original_text.words_of("a")


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
