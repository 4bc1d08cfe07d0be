"""Arrays in, matplotlib figures out; nothing here knows a model."""
