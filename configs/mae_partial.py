"""Partial fine-tuning of a MAE encoder: only the last blocks (He et al. 2022, section 5.2 and Figure 9).

    python -m vit_jax.main --workdir=runs/mae-l16-4 --config=configs/mae_partial.py:l16,4 \
        --config.init_from=mae_pretrain_vit_large.pth

The recipe is mae_finetune.py's; epochs there were the best of 50, 100 and 200. Expected on ImageNet-1k with ViT-L: 0 blocks
73.5, the MLP of the last block (0.5) 79.1, 1 block 81.0, 4 to 6 blocks close to all 24. Not measured here; CIFAR-10 in
docs/results.md.
"""

from __future__ import annotations

from configs import mae_finetune


def get_config(model_and_blocks: str = "b16,1"):
    """`MODEL,BLOCKS`: BLOCKS is 0.5 (the MLP of the last block) or a number of blocks."""
    name, _, blocks = model_and_blocks.partition(",")
    try:
        number = float(blocks)
    except ValueError:
        raise ValueError(
            f"Expected mae_partial.py:MODEL,BLOCKS such as b16,0.5 or l16,4, got {model_and_blocks!r}."
        ) from None
    config = mae_finetune.get_config(name)
    config.train_blocks = int(number) if number.is_integer() else number
    return config
