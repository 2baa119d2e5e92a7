"""Attention over packed rows: by plain products anywhere, by fused kernels where a device has them."""
