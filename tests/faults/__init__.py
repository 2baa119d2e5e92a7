"""Faults on purpose: kills, mutated configs, damaged files, full disks. `python -m tests.faults` prints the figures."""
