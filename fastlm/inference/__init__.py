"""Using a trained model: loading it from a run's folder, writing text, filling masks. Imports nothing of training."""
