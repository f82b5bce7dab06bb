"""Converts configurations from and to transformers' config.json, with what a fine-tuned model does.

`openai-gpt` is our GPT1, `bert` our BERT. heads.py lists their classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastlm.data.labelled.description import Description
from fastlm.integrations.transformers.heads import find_class, kind_of_class
from fastlm.integrations.transformers.names import Config
from fastlm.models import BERTConfig, GPT1Config
from fastlm.nn import Head

_GPT1_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "layers": "n_layer",
    "hidden": "n_embd",
    "heads": "n_head",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "embedding_dropout": "embd_pdrop",
    "eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
_BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "embedding_dropout": "hidden_dropout_prob",
    "eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "segments": "type_vocab_size",
}
_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_ACTIVATION = {"none": "gelu", "tanh": "gelu_new"}

# Fields that must have these values if they are present: other values make another model.
_REQUIRED = {
    "openai-gpt": {"afn": "gelu", "tie_word_embeddings": True},  # transformers' "gelu" is the tanh form in this model
    "bert": {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
}
_REQUIRED_OF_CHOICE = {  # of OpenAIGPTDoubleHeadsModel
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
}


def import_config(config: Mapping[str, Any]) -> Config:
    """Converts their configuration, as in config.json or `config.to_dict()`, to ours.

    Raises ValueError, naming the field, for a model that is not one of ours.
    """
    model_type = config.get("model_type") or ("bert" if "type_vocab_size" in config else None)
    if model_type not in _REQUIRED:
        raise ValueError(f"model_type must be 'openai-gpt' or 'bert', got {model_type!r}")
    _check_fields(config, _REQUIRED[model_type], f"a {model_type} model")
    renamed = _GPT1_FIELDS if model_type == "openai-gpt" else _BERT_FIELDS
    missing = sorted({theirs for theirs in renamed.values() if theirs not in config})
    if missing:
        raise ValueError(f"the {model_type} configuration lacks {', '.join(missing)}")
    values = {ours: config[theirs] for ours, theirs in renamed.items()}
    if model_type == "openai-gpt":
        gpt1 = GPT1Config(**values)
        return replace(gpt1, intermediate=4 * gpt1.hidden)
    activation = config.get("hidden_act", "gelu")
    if activation not in _GELU:
        raise ValueError(f"hidden_act must be one of {', '.join(_GELU)}, got {activation!r}")
    return BERTConfig(**values, gelu=_GELU[activation])


def import_task(config: Mapping[str, Any]) -> Description | None:
    """Returns what a fine-tuned model does, by its class and id2label; None for another model.

    Raises ValueError, naming the field, for a task that fastlm does not have.
    """
    architecture = (config.get("architectures") or [None])[0]
    kind = kind_of_class(architecture)
    if kind is None:
        return None
    if kind == "classification":
        kind = _classes_or_score(config)
    if architecture == "OpenAIGPTDoubleHeadsModel":
        _check_fields(config, _REQUIRED_OF_CHOICE, f"an {architecture}")
    context = import_config(config).context
    labels = import_labels(config) if kind in ("classification", "tagging") else ()
    return Description(kind, labels, max_length=context, head_dropout=_head_dropout(config))


def import_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the labels in the order of the head's units: by the numbers of id2label, wherever they stand in it.

    As in transformers, num_labels is right if the two disagree, and labels without names are LABEL_0, LABEL_1, ....
    Raises ValueError if the numbers are not 0, 1, ..., or if two labels are equal.
    """
    named = config.get("id2label")
    count = config.get("num_labels") or (2 if named is None else len(named))
    if named is None or len(named) != count:
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        by_number = {int(number): str(label) for number, label in named.items()}
    except ValueError:
        by_number = {}
    if sorted(by_number) != list(range(count)):
        raise ValueError(f"id2label must number its labels 0 to {count - 1}, got {', '.join(map(str, named))}")
    labels = tuple(by_number[i] for i in range(count))
    if len(set(labels)) < count:
        raise ValueError(f"id2label must have a label once, got {max(labels, key=labels.count)!r} twice")
    return labels


def export_config(
    config: Config, heads: Mapping[str, Head] | None = None, task: Description | None = None
) -> dict[str, Any]:
    """Converts our configuration to the content of their config.json.

    heads: by name; None means the heads that the model is pretrained with. task: needed for a task's head.

    Raises ValueError, with a sentence, if transformers cannot hold the model.
    """
    theirs = find_class(config, heads, task)
    written: dict[str, Any] = {"architectures": [theirs.name]}
    if isinstance(config, GPT1Config):
        if config.intermediate != 4 * config.hidden:
            raise ValueError(
                f"intermediate must be 4 * hidden = {4 * config.hidden} for openai-gpt, got {config.intermediate}"
            )
        written |= {"model_type": "openai-gpt", "afn": "gelu"}
        renamed = _GPT1_FIELDS
    else:
        if config.embedding_dropout != config.dropout:
            raise ValueError(
                "embedding_dropout must equal dropout for transformers' bert, which has one number for both, "
                f"got {config.embedding_dropout} and {config.dropout}"
            )
        written |= {"model_type": "bert", "hidden_act": _ACTIVATION[config.gelu]}
        renamed = _BERT_FIELDS
    written |= {theirs: getattr(config, ours) for ours, theirs in renamed.items()}
    return written | (_export_task(task, config) if task else {})


def _export_task(task: Description, config: Config) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if task.kind in ("classification", "tagging"):
        written["id2label"] = {str(i): label for i, label in enumerate(task.labels)}
        written["label2id"] = {label: i for i, label in enumerate(task.labels)}
    if task.kind == "classification":
        written["problem_type"] = "single_label_classification"
    if task.kind == "regression":
        written |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    if isinstance(config, BERTConfig):
        return written if task.kind == "span" else written | {"classifier_dropout": task.head_dropout}
    return (
        written | _REQUIRED_OF_CHOICE | {"summary_first_dropout": task.head_dropout}
        if task.kind == "choice"
        else written
    )


def _classes_or_score(config: Mapping[str, Any]) -> str:
    """Returns the kind of a ...ForSequenceClassification. Raises ValueError for several labels or numbers at once."""
    given, count = config.get("problem_type"), len(import_labels(config))
    if given == "multi_label_classification" or (given == "regression" and count > 1):
        raise ValueError(
            "problem_type must be 'single_label_classification', or 'regression' with one number, for a model that "
            f"fastlm has, got {given!r} with {count} outputs"
        )
    return "regression" if count == 1 else "classification"


def _head_dropout(config: Mapping[str, Any]) -> float:
    if "type_vocab_size" not in config:
        return config.get("summary_first_dropout", 0.1)
    given = config.get("classifier_dropout")
    return config["hidden_dropout_prob"] if given is None else given


def _check_fields(config: Mapping[str, Any], required: Mapping[str, Any], name: str) -> None:
    for field, value in required.items():
        if config.get(field, value) != value:
            raise ValueError(f"{field} must be {value!r} for {name}, got {config[field]!r}")
