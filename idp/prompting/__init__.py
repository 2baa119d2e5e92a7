"""The heart of the project: a bank of prompts, a selector that picks one per input, and the prefixed forward pass."""
