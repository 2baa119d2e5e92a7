"""The methods of rounding: one file each, called as `compressor.quantization.method` is."""
