"""The script that makes the table of docs/finetuning.md, on results that are written here."""

import importlib.util
import json
from pathlib import Path

import pytest
from labelled import write_tsv

FILE = Path(__file__).parent.parent / "docs" / "finetuning.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("docs_finetuning", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_means_and_deviations_over_the_seeds(script, tmp_path, monkeypatch):
    """Two of the four test examples are good: without text 50%, by their words 100%."""
    monkeypatch.setattr(script, "SETS", {"rt_sentences": script.SETS["rt_sentences"]._replace(models=("bert",))})
    monkeypatch.setattr(script, "DOCUMENT", tmp_path / "finetuning.md")
    rows = [(f"a {'fine' if i % 2 else 'dull'} film", i % 2) for i in range(4)]
    for split in ("train", "test"):
        write_tsv(tmp_path / f"rt_sentences.{split}.tsv", [("sentence", "label"), *rows])
    for start, scores in {"scratch": (0.5, 0.6, 0.7), "pretrained": (0.75, 0.75, 0.75)}.items():
        for seed, score in enumerate(scores):
            run = script.run_of(tmp_path, "rt_sentences", "bert", start, seed)
            run.mkdir()
            script.scores_file(run).write_text(json.dumps({"accuracy": score}))
    (tmp_path / "finetuning.md").write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    script.write_table(tmp_path, tmp_path)
    lines = (tmp_path / "finetuning.md").read_text().splitlines()
    assert lines[:2] + lines[-2:] == ["before", "<!-- table -->", "<!-- /table -->", "after"]
    assert lines[4] == "| `rt_sentences` | accuracy | 4 | 50.0 | 100.0 | 60.0 ± 10.0 | 75.0 ± 0.0 | - | - |"
    assert len(lines) == 7 and {line.count("|") for line in lines[2:5]} == {10}


def test_reviews_that_a_set_is_made_of_are_left_out(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "fastlm", lambda *arguments: None)
    reviews = tmp_path / "reviews.csv"
    reviews.write_text('text,label,source\n"Good.<br /><br />Very.",1,imdb\nBad.,0,rotten_tomatoes\n')
    script.pretrain("bert", tmp_path / "novels.txt", reviews, tmp_path / "work")
    written = (tmp_path / "work" / "reviews-bert.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == [{"text": "Good.\n\nVery."}]
