"""Uses trained models: loads them from run folders, generates text, fills masks. Imports nothing of train/."""
