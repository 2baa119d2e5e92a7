"""One command on a real GPU, within minutes and without network: `make gpu`; see docs/large_models.md."""
