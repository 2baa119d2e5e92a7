"""Tasks, scores, perplexity and latency."""
