"""The options of `fastlm.patch`: one switch per op, the backend, and whether training returns logits."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fastlm.backends import checked_name


@dataclass(frozen=True)
class PatchOptions:
    """Holds the options.

    attention: attention with dropout, also of padded batches.
    layer_norm: layer norms, with the bias, dropout and residual before them where the model has these.
    gelu: GELU with the bias before it, and with the layer norm behind it in the masked-LM transform.
    embeddings: the sum of word, position and segment embeddings, with its layer norm and dropout.
    loss: the loss over the vocabulary, in training without logits, and torch.nn's CrossEntropyLoss modules.
    return_logits: whether training returns the logits too, which then are computed as without `loss`.
    backend: "auto", "reference", "cpu", "triton" or "cuda", for all replaced modules.

    Raises ValueError for an unknown backend, and TypeError for a switch that is neither True nor False.
    """

    attention: bool = True
    layer_norm: bool = True
    gelu: bool = True
    embeddings: bool = True
    loss: bool = True
    return_logits: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        checked_name(self.backend)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "backend" and not isinstance(value, bool):
                raise TypeError(f"patch: {field.name} must be True or False, got {value!r}")
