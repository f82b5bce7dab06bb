"""Training: optimizers, schedules, checkpoints, the loop and its report, for any task."""
