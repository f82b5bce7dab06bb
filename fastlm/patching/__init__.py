"""Replaces modules of existing models by fastlm's, in place, and puts them back: `fastlm.patch`, `fastlm.unpatch`.

`apply_fastlm_to_bert()` and its like patch every model of an architecture of transformers that is made afterwards.
"""

from fastlm.patching.classes import (
    apply_fastlm_to_albert,
    apply_fastlm_to_bert,
    apply_fastlm_to_distilbert,
    apply_fastlm_to_electra,
    apply_fastlm_to_gpt2,
    apply_fastlm_to_openai_gpt,
    apply_fastlm_to_roberta,
    revert,
)
from fastlm.patching.options import PatchOptions
from fastlm.patching.report import Left, Replaced, Report
from fastlm.patching.tree import patch, unpatch

__all__ = [
    "Left",
    "PatchOptions",
    "Replaced",
    "Report",
    "apply_fastlm_to_albert",
    "apply_fastlm_to_bert",
    "apply_fastlm_to_distilbert",
    "apply_fastlm_to_electra",
    "apply_fastlm_to_gpt2",
    "apply_fastlm_to_openai_gpt",
    "apply_fastlm_to_roberta",
    "patch",
    "revert",
    "unpatch",
]
