"""What `vit-jax` runs, one small file a subcommand."""
