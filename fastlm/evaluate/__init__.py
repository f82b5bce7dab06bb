"""Baselines that a model's metrics are compared with."""
