"""Checkpoints that others compressed: what each format claims, and its weights as plain numbers."""
