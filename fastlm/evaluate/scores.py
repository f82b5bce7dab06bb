"""The scores of labelled data by name, each with a title, a number format, and a function of labels and predictions.

| kind | a label, and a prediction |
|---|---|
| classification | the index of a class (f1: 1 is the positive class) |
| regression | a number |
| choice | the index of a choice |
| span | label: the texts of all right answers, none if there is no answer; prediction: a text |
| tagging | the tags of a sentence, as text |

All scores are fractions: 1 is the best. f1, macro_f1, matthews, pearson and spearman need scikit-learn and scipy, the
extra `finetune`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fastlm.data.labelled.examples import ChoiceExample, Example, Notify, SpanExample, TaggedExample, to_stderr
from fastlm.data.labelled.formats import Format
from fastlm.data.labelled.labels import unknown_label
from fastlm.evaluate import squad, tags


class Score(NamedTuple):
    """Holds a score's title and number format in a report, and `function(labels, predictions)`."""

    title: str
    number_format: str
    function: Callable[[Sequence, Sequence], float]


def accuracy(labels: Sequence, predictions: Sequence) -> float:
    return sum(label == prediction for label, prediction in zip(labels, predictions, strict=True)) / len(labels)


def f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Returns the F1 of class 1, of two; 0 if no example of it is predicted right."""
    return float(library("sklearn.metrics").f1_score(labels, predictions, zero_division=0))


def macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Returns the mean F1 of the classes that are labelled or predicted."""
    return float(library("sklearn.metrics").f1_score(labels, predictions, average="macro", zero_division=0))


def matthews(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Returns Matthews' correlation, of any number of classes; 0 if all labels, or all predictions, are one class."""
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return float(library("sklearn.metrics").matthews_corrcoef(labels, predictions))


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Returns Pearson's correlation; 0 if all labels, or all predictions, are equal, where it is not defined."""
    return _correlation("pearsonr", labels, predictions)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, ties having mean ranks; 0 as for `pearson`."""
    return _correlation("spearmanr", labels, predictions)


def _correlation(name: str, labels: Sequence[float], predictions: Sequence[float]) -> float:
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return float(getattr(library("scipy.stats"), name)(labels, predictions).statistic)


def _is_constant(values: Sequence) -> bool:
    return len(set(values)) == 1


def library(module: str) -> Any:
    """Imports a module of the extra `finetune`. Raises ModuleNotFoundError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).partition(".")[0].replace("sklearn", "scikit-learn")
        raise ModuleNotFoundError(f"{name} is not installed: pip install 'fastlm[finetune]'", name=error.name) from None


def _mean_of_best(score: Callable[[str, str], float]) -> Callable[[Sequence, Sequence], float]:
    def mean(labels: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
        return sum(squad.best(score, *pair) for pair in zip(labels, predictions, strict=True)) / len(labels)

    return mean


def _with_empty_answers(mean: Callable[[Sequence, Sequence], float]) -> Callable[[Sequence, Sequence], float]:
    return lambda labels, predictions: mean([squad.answers_2(answers) for answers in labels], predictions)


SCORES = {
    "accuracy": Score("accuracy", ".1%", accuracy),
    "f1": Score("F1", ".1%", f1),
    "macro_f1": Score("macro F1", ".1%", macro_f1),
    "matthews": Score("Matthews", ".3f", matthews),
    "pearson": Score("Pearson", ".3f", pearson),
    "spearman": Score("Spearman", ".3f", spearman),
    "squad1_f1": Score("F1", ".1%", _mean_of_best(squad.f1_1)),
    "squad1_exact": Score("exact match", ".1%", _mean_of_best(squad.exact)),
    "squad2_f1": Score("F1", ".1%", _with_empty_answers(_mean_of_best(squad.f1_2))),
    "squad2_exact": Score("exact match", ".1%", _with_empty_answers(_mean_of_best(squad.exact))),
    "entity_f1": Score("entity F1", ".1%", tags.entity_f1),
    "entity_precision": Score("entity precision", ".1%", tags.entity_precision),
    "entity_recall": Score("entity recall", ".1%", tags.entity_recall),
    "token_f1": Score("token F1", ".1%", tags.token_f1),
    "token_accuracy": Score("token accuracy", ".1%", tags.token_accuracy),
}


def scores_for(made: Format, labels: Sequence[str], notify: Notify = to_stderr) -> tuple[str, ...]:
    """Returns the names of a format's scores for these labels.

    Tags without B- and I- mark no entities: they are scored per token, and `notify` is told.
    """
    if made.kind != "tagging" or tags.marks_entities(labels):
        return made.scores
    if "O" not in labels:
        notify("the tags have no B- or I-: the score is the accuracy per token")
        return ("token_accuracy",)
    notify('the tags have no B- or I-: the score is the F1 per token, of all tags but "O", not the F1 of entities')
    return ("token_f1", "token_accuracy")


def targets(examples: Iterable[Example], labels: Sequence[str] | None) -> list[Any]:
    """Returns what the functions of SCORES take as `labels`. labels: the names of the classes, in their order.

    Raises DataError, with the file and the line, for a class that is not one of `labels`.
    """
    index = {name: number for number, name in enumerate(labels or ())}
    return [_target(example, index) for example in examples]


def _target(example: Example, index: dict[str, int]) -> Any:
    if isinstance(example, SpanExample):
        return squad.texts(example)
    if isinstance(example, TaggedExample):
        return example.tags
    if isinstance(example, ChoiceExample) or isinstance(example.label, float):
        return example.label
    if example.label not in index:
        raise unknown_label(str(example.label), list(index), example.where)
    return index[example.label]


def score_all(
    names: Iterable[str], labels: Sequence, predictions: Sequence, groups: Sequence[str] | None = None
) -> dict[str, float]:
    """Returns {name: score}. groups: the part of the data that each example belongs to, as RACE's middle and high.

    With more than one group, "NAME_GROUP" is the score of one. Raises ValueError for no examples, and for other numbers
    of labels and predictions.
    """
    if not labels or len(labels) != len(predictions):
        raise ValueError(f"scores: a label per prediction expected, got {len(labels)} and {len(predictions)}")
    found = {name: SCORES[name].function(labels, predictions) for name in names}
    for group in sorted(set(groups or ()) - {""}) if len(set(groups or ())) > 1 else ():
        part = [i for i, other in enumerate(groups or ()) if other == group]
        for name in tuple(names):
            function = SCORES[name].function
            found[f"{name}_{group}"] = function([labels[i] for i in part], [predictions[i] for i in part])
    return found
