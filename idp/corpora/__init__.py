"""Running text, for calibration, training and perplexity."""
