"""Tasks that lm-eval does not define, in its own form: a YAML for each, and the functions that they name."""
