"""Parameters and forward passes; no loss, no optimiser, no pixel statistics, no files."""
