"""Replacements for the modules of Hugging Face's transformers, a file per architecture."""
