"""Pictures on the host: NumPy and Pillow, no jax. Sources -> transforms -> loader -> Batch."""
