"""Replaces modules of existing models by fastlm's, in place, and puts them back: `fastlm.patch`, `fastlm.unpatch`."""

from fastlm.patching.options import PatchOptions
from fastlm.patching.report import Left, Replaced, Report
from fastlm.patching.tree import patch, unpatch

__all__ = ["Left", "PatchOptions", "Replaced", "Report", "patch", "unpatch"]
