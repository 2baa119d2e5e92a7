"""`make bench`: the scorer against lm-eval's own HFLM, and what prompts and adapters cost, side by side in one run."""
