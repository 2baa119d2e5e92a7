"""Where a corpus is read from: one file each, chosen by `corpus.source`."""
