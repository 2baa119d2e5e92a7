"""Stage 2: from a dense model to a compressed one, with a measure of what its weights really are."""
