"""The kinds of compressor: one file each, called as `compressor.kind` is."""
