"""Conversion of models and weights from and to other libraries."""
