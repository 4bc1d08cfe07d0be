"""Parts of training; the one loop that puts them together is vit_jax/train.py."""
