"""Judging a model that is not trained here."""
