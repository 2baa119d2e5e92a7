"""The methods of pruning: one file each, called as `compressor.sparsity.method` is."""
