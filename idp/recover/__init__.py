"""Stage 3: repairs of a compressed model. One file a recovery, and one training loop for all."""
