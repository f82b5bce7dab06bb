"""Pretraining: the papers' optimizers and schedules, checkpoints, the loop and its report."""
