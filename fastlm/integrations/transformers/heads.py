"""Which of transformers' classes holds a model with which heads, and in which of its modules.

A head's kind is that of its task (`Description.kind`), or "lm", "mlm" or "nsp" for those of pretraining.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import KINDS
from fastlm.integrations.transformers.names import Config, Table, head_table, trunk_table
from fastlm.models import GPT1Config, pretraining_heads
from fastlm.nn import (
    CausalLMHead,
    ChoiceHead,
    ClassificationHead,
    Head,
    MaskedLMHead,
    NextSentenceHead,
    RegressionHead,
    SpanHead,
    TaggingHead,
)


class Class(NamedTuple):
    """Describes one of their classes.

    modules: by the kind of a head, the module that is the head; "" for a head without parameters. pooler: whether it
    has BERT's pooler. bias: whether its task's head has a bias.
    """

    name: str
    modules: dict[str, str]
    pooler: bool = False
    bias: bool = True


_MLM, _NSP = {"mlm": "cls.predictions"}, {"nsp": "cls.seq_relationship"}
_BERT = (
    Class("BertForPreTraining", _MLM | _NSP, pooler=True),
    Class("BertForMaskedLM", _MLM),
    Class("BertForNextSentencePrediction", _NSP, pooler=True),
    Class("BertModel", {}, pooler=True),
    Class("BertForSequenceClassification", {"classification": "classifier"}, pooler=True),
    Class("BertForSequenceClassification", {"regression": "classifier"}, pooler=True),
    Class("BertForMultipleChoice", {"choice": "classifier"}, pooler=True),
    Class("BertForTokenClassification", {"tagging": "classifier"}),
    Class("BertForQuestionAnswering", {"span": "qa_outputs"}),
)
_GPT1 = (
    Class("OpenAIGPTLMHeadModel", {"lm": ""}),
    Class("OpenAIGPTModel", {}),
    Class("OpenAIGPTForSequenceClassification", {"classification": "score"}, bias=False),
    Class("OpenAIGPTForSequenceClassification", {"regression": "score"}, bias=False),
    Class("OpenAIGPTDoubleHeadsModel", {"lm": "", "choice": "multiple_choice_head.summary"}),
)
POOLED = {"nsp", "classification", "regression", "choice"}  # heads of BERT that read the pooler
PRETRAINED = {"lm", "mlm", "nsp"}
_KINDS: dict[type[Head], str] = {
    MaskedLMHead: "mlm",
    NextSentenceHead: "nsp",
    CausalLMHead: "lm",
    ClassificationHead: "classification",
    RegressionHead: "regression",
    ChoiceHead: "choice",
    TaggingHead: "tagging",
    SpanHead: "span",
}


def kind_of(head: Head) -> str | None:
    """Returns the kind of a head; None for a class of heads that transformers has nothing like."""
    return next((kind for head_class, kind in _KINDS.items() if isinstance(head, head_class)), None)


def kind_of_class(name: str | None) -> str | None:
    """Returns the kind of the task that one of their classes is for; None for another class."""
    kinds = [kind for theirs in (*_BERT, *_GPT1) if theirs.name == name for kind in theirs.modules if kind in KINDS]
    return kinds[0] if kinds else None


def modules(config: Config) -> dict[str, str]:
    """Returns, by kind, the module of every head that their models of this type can have."""
    return {kind: module for theirs in _classes(config) for kind, module in theirs.modules.items()}


def has_bias(config: Config, kind: str) -> bool:
    """Returns whether a kind's head has a bias in their models."""
    return next(theirs.bias for theirs in _classes(config) if kind in theirs.modules)


def find_class(config: Config, heads: Mapping[str, Head] | None, task: Description | None = None) -> Class:
    """Returns the class that holds a model with these heads; None means those that it is pretrained with.

    Raises ValueError, with a sentence, if there is none.
    """
    heads = pretraining_heads(config) if heads is None else heads
    kinds = {kind_of(head): head for head in heads.values()}
    wanted = (kinds.keys(), kinds.keys() - {"lm"}, kinds.keys() | {"lm"})  # "lm" has no parameters of its own
    found = next((c for names in wanted for c in _classes(config) if c.modules.keys() == names), None)
    if found is None or len(kinds) < len(heads):  # two of one kind
        name = "openai-gpt" if isinstance(config, GPT1Config) else "bert"
        listed = ", ".join(f"{name!r} ({type(head).__name__})" for name, head in heads.items())
        raise ValueError(f"heads: transformers has no {name} class with {listed}; only fastlm loads such a model")
    for kind in kinds.keys() & set(KINDS):
        _check_task(found, kind, kinds[kind], task)
    return found


def model_table(config: Config, heads: Mapping[str, Head] | None, theirs: Class) -> Table:
    """Returns the table of the tensors that both a model with these heads and `theirs` have."""
    table = trunk_table(config)
    if not theirs.pooler:
        table = {ours: entry for ours, entry in table.items() if not ours.startswith("pooler.")}
    for name, head in (pretraining_heads(config) if heads is None else heads).items():
        kind = kind_of(head)
        table |= head_table(name, kind, theirs.modules.get(kind, ""), bias=getattr(head, "bias", None) is not None)
    return table


def _check_task(theirs: Class, kind: str, head: Head, task: Description | None) -> None:
    """Raises ValueError if a task's head is not one that their class has, or if `task` does not describe it."""
    if task is None or task.kind != kind:
        given = "None" if task is None else f"one of {task.kind}"
        raise ValueError(f"task: the description of the model's {kind} expected, got {given}")
    units = head.out_features
    if kind in ("classification", "tagging") and len(task.labels) != units:
        raise ValueError(f"task: a label for each of the head's {units} units expected, got {len(task.labels)}")
    if kind == "classification" and units < 2:
        raise ValueError(f"task: at least 2 labels expected for {theirs.name}, got {units}")
    if task.both_orders:
        raise ValueError(
            "task: transformers has no class that reads a pair in both orders, as this model does; only fastlm loads it"
        )
    if head.bias is not None and not theirs.bias:
        raise ValueError(
            f"head: the score of {theirs.name} has no bias, and this model's head has one; train with --no-head-bias"
        )


def _classes(config: Config) -> tuple[Class, ...]:
    return _GPT1 if isinstance(config, GPT1Config) else _BERT
