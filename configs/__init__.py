"""Recipes: one a file, each a lab note. They import ml_collections and each other, nothing that runs."""
