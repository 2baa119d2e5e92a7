"""Stage 5: what a run leaves: its record, its status and log, and W&B."""
