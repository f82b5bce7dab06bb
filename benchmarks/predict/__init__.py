"""Predicted times of fastlm's kernels on an H100, from their machine code. No GPU is needed, and nothing is measured.

`python -m benchmarks predict` runs fastlm's ops with launchers that record (launches.py, recording.py), carries out the
integer part of each kernel for a few CTAs (walk.py, and what it imports), and simulates one SM clock by clock
(simulate.cpp). docs/predicted.md says how far the figures can be trusted.
"""
