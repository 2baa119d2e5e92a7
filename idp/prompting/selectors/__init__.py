"""Selectors: ways to pick one prompt of a bank for one input. One file each."""
