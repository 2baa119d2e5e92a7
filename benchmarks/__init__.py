"""Benchmarks: `idp bench`, `idp bench training` and the others, of a checkout; they are not part of the wheel.

`idp.bench` has those that need nothing else, and lists them all.
"""
