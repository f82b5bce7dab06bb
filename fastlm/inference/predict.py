"""Predicts with fine-tuned models: `fastlm predict RUN FILE`, `fastlm evaluate RUN FILE`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from fastlm.data.corpus import DataError
from fastlm.data.inputs import Template
from fastlm.data.labelled.batches import LabelledBatches
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.encode import encode
from fastlm.data.labelled.examples import Example, Kind
from fastlm.data.labelled.formats import find_format
from fastlm.data.labelled.records import example
from fastlm.data.labelled.tables import Columns
from fastlm.data.tokenizer import Tokenizer
from fastlm.evaluate.scores import targets
from fastlm.inference.load import load_pretrained, read_task
from fastlm.inference.outputs import predictions, read_outputs
from fastlm.inference.scoring import score_predictions
from fastlm.models import Model
from fastlm.run_folder import RunError


class Predictor:
    """Holds a fine-tuned model in eval mode, its tokenizer, and the description of its task."""

    def __init__(self, model: Model, tokenizer: Tokenizer, task: Description):
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.device = next(model.parameters()).device
        self._template = Template.of(tokenizer, task.max_length)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", backend: str = "auto") -> Self:
        """Loads a fine-tuned model from a run folder, a model's folder, or a folder of transformers'.

        Raises RunError if the model is not fine-tuned, and the errors of `load_pretrained`.
        """
        task = read_task(folder)
        if task is None:
            raise RunError(f"run: {folder} holds no fine-tuned model (it has no task.json); fastlm finetune makes one")
        model, tokenizer = load_pretrained(folder, device=device, backend=backend)
        return cls(model, tokenizer, task)

    def predict(self, examples: Iterable[Example], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Yields a prediction per example, in order; reads `batch_size` examples ahead.

        classification  {"id", "label", "probabilities": {label: p}}
        regression      {"id", "score"}
        choice          {"id", "choice", "probabilities": [p per choice]}
        span            {"id", "null_odds", "n_best": [{"text", "start", "probability"}], "answer", "probability"}
        tagging         {"id", "tags": [tag per word], "probabilities": [p of the tag per word, None if not predicted]}

        Raises DataError, with the example's place, for an example that the task cannot read.
        """
        for chunk in self._chunks(examples, batch_size):
            yield from self._predict(chunk, batch_size)

    def scores(self, examples: Sequence[Example], *, batch_size: int = 32) -> dict[str, float]:
        """Returns the scores of the model on labelled examples, {name: value}, as in the table of a report.

        A model of transformers' has the scores of the generic formats. Raises DataError for a label it does not have.
        """
        targets(examples, self.task.labels)  # an unknown label is an error before the predictions, which take time
        names = self.task.scores or find_format("jsonl", kind=self.task.kind).scores
        predicted = list(self.predict(examples, batch_size=batch_size))
        return score_predictions(replace(self.task, scores=names), examples, predicted)

    def _chunks(self, examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
        """Yields the examples in lists of `size`; a document is not divided if sentences are read in theirs."""
        whole_documents, chunk = self.task.document_context, []
        for each in examples:
            if whole_documents and len(chunk) >= size and chunk[-1].document != each.document:
                yield chunk
                chunk = []
            chunk.append(each)
            if not whole_documents and len(chunk) == size:  # at once: a person may wait for the answer
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    @torch.inference_mode()
    def _predict(self, examples: list[Example], batch_size: int) -> list[dict[str, Any]]:
        encodings = encode(examples, self.tokenizer, self.task, targets=False, places=True)
        rows = self.task.kind in ("classification", "regression", "choice")
        options = {"pad": self._template.pad, "rows": rows, "segments": not self._template.causal}
        batches = LabelledBatches(encodings, batch_size, 0, layout="binned", train=False, **options)
        outputs = []
        for step in range(batches.batches_per_epoch):
            batch = {name: tensor.to(self.device) for name, tensor in batches.batch(step).items()}
            hidden = self.model(batch["tokens"], batch.get("segments"), batch["lengths"]).hidden
            outputs += read_outputs(self.model, self.task, hidden, batch)
        return predictions(self.task, examples, encodings, outputs)


def examples_of_lines(lines: Iterable[str], kind: Kind, source: str = "stdin") -> Iterator[Example]:
    """Yields the examples of a stream, one per line that is not blank.

    A line is a JSON object with the fields of the kind's example ("text", "pair"; "context", "question", "choices";
    "question", "context"; "words"), labels left out. For kinds that read texts or tags, a line that is no JSON object
    is a text, or words between spaces. Raises DataError, naming `source` and the line.
    """
    for number, line in enumerate(lines):
        if text := line.strip():
            where = f"{source}:{number + 1}"
            record = _record(text, kind, where)
            columns = None
            if kind in ("classification", "regression"):
                columns = Columns(pair="pair" if "pair" in record else None, id="id" if "id" in record else None)
            yield example(kind, record, where, str(number), columns=columns, labelled=False)


def _record(text: str, kind: Kind, where: str) -> dict[str, Any]:
    """Returns the JSON object of a line, or the one that a line of text stands for."""
    if text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{where}: a line that begins with {{ must be a JSON object ({error})") from None
    if kind in ("choice", "span"):
        fields = '"context" and "choices"' if kind == "choice" else '"question" and "context"'
        raise DataError(f"{where}: a JSON object with {fields} expected, got {text[:40]!r}")
    return {"words": text.split()} if kind == "tagging" else {"text": text}
