"""Other people's weights, in and out: one table of rules a source, applied both ways. NumPy in, NumPy out."""
