"""Lists what `fastlm.patch` leaves as it is: modules, which the report names, and calls of replaced modules.

docs/replaced.md is made of these lines by `python docs/replaced.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """Holds a switch ("any" for all), what is not served, and what happens to it.

    architectures: names as in `transformers.tables.ARCHITECTURES`; empty for all.
    """

    switch: str
    what: str
    then: str
    architectures: tuple[str, ...] = ()


PADDING = (
    "sequences padded at the left or the right run on the kernel; a loss must ignore the outputs at padded positions"
)
HOLES = "SDPA with a warning on an eager CPU; on a GPU and in compiled code an error of the device"

_OWN = "the model's own computation"

# A module with one of these stays as it is.
LEFT = (
    Limit("any", "the module has a `forward` set on itself", "another library has set it"),
    Limit("any", "the module's class overrides `forward`", "its class has a forward of its own"),
    Limit("attention", "head_dim above {max_head_dim}", "the kernels take up to {max_head_dim}"),
    Limit("attention", "position_embedding_type other than absolute", "it adds to the scores"),
    Limit("attention", "an attention module outside its model", "the model around it makes its masks"),
    Limit("layer_norm", "a norm other than torch's LayerNorm", "no kernel computes it"),
    Limit(
        "any",
        "a fused module of transformers whose layer norm has no weight, or several dimensions",
        "the fused kernels need a weight, over one dimension; the layer norm alone is replaced",
    ),
    Limit(
        "attention",
        "a subclass of torch's MultiheadAttention, or one with add_bias_kv, add_zero_attn, kdim or vdim",
        "no kernel computes it",
    ),
    Limit(
        "any", "a subclass of torch's TransformerEncoder or TransformerEncoderLayer", "it may change several methods"
    ),
    Limit(
        "any", "dropout of another class, or not 0 or 1 but rounded to it", "kernels apply dropout in steps of 1/256"
    ),
    Limit("gelu", "an activation other than a GELU of the erf or tanh form", "no kernel computes it"),
    Limit("embeddings", "an embedding of another class, or with hooks", "its weight cannot be read without a call"),
    Limit("embeddings", "max_norm, scale_grad_by_freq or sparse gradients", "no kernel computes them"),
    Limit(
        "loss", "a layer of logits that is not a plain Linear, or has hooks", "its weight cannot be read without a call"
    ),
    Limit("loss", "a loss function of its own", "no kernel computes it"),
)

_INTERFACE = ("albert", "bert", "distilbert", "electra", "gpt2", "roberta")

# These calls of a replaced module take another way.
CALLS = (
    Limit("attention", "a mask with padding between valid positions", HOLES, _INTERFACE),
    Limit("attention", "a mask with padding between valid positions", HOLES.replace("SDPA", _OWN), ("openai_gpt",)),
    Limit("attention", "a mask that is neither 2-D nor causal", "SDPA", _INTERFACE),
    Limit("attention", "a mask that is not 2-D", _OWN, ("openai_gpt",)),
    Limit(
        "attention",
        "a cache or cross-attention: queries and keys of different length",
        "SDPA",
        ("bert", "electra", "gpt2", "roberta"),
    ),
    Limit("attention", "output_attentions", "the model's eager attention", _INTERFACE),
    Limit("attention", "output_attentions", _OWN, ("openai_gpt",)),
    Limit("layer_norm", "cross-attention (encoder_hidden_states)", _OWN, ("gpt2",)),
    Limit("layer_norm", "chunk_size_feed_forward above 0", _OWN, ("albert",)),
    Limit("embeddings", "inputs_embeds", _OWN, ("albert", "bert", "distilbert", "electra", "roberta")),
    Limit("loss", "eval, calls without labels, return_logits=True, return_dict=False, logits_to_keep", _OWN),
)
