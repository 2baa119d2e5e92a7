"""A run's model as others can load it: checkpoint, tokenizer, recipe, card, licence, and the repair beside it."""
