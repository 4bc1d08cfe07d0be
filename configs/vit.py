"""Fine-tune Google's ImageNet-21k ViT on a data set, as the ViT paper did (Dosovitskiy et al. 2021, B.1.1).

    python -m vit_jax.main --workdir=runs/b16-cifar10 --config=configs/vit.py:b16,cifar10 \
        --config.pretrained_dir=gs://vit_models/imagenet21k   # or a folder with ViT-B_16.npz; or --config.init_from=ANY_FILE

Source: google-research/vision_transformer, vit_jax/configs/vit.py and common.py. SGD with bfloat16 momentum, global
norm 1, cosine to 0 after 500 steps; 384 pixels. Expected there with the published weights: CIFAR-10 98.76-99.02 for
B/16 (README of that repository). Not measured here: the weights are not part of this project.
"""

from __future__ import annotations

from configs import common, models

# data set: (training split, test split, steps), from vit_jax/configs/common.py there
DATASETS = {
    "cifar10": ("train[:98%]", "test", 10_000),
    "cifar100": ("train[:98%]", "test", 10_000),
    "imagenet2012": ("train[:99%]", "validation", 20_000),
}


def fine_tuning():
    """What Google's common.py sets for all of its fine-tuning, where our defaults differ."""
    config = common.get_config()
    config.pretrained_dir = "."
    config.pp.crop = 384
    config.batch, config.batch_eval, config.accum_steps = 512, 512, 8
    config.base_lr, config.warmup_steps = 0.03, 500
    config.eval_every, config.progress_every, config.checkpoint_every = 100, 10, 1_000
    return config


def get_config(model_and_dataset: str = "b16,cifar10"):
    """`MODEL,DATASET`, e.g. b16,cifar10."""
    model, _, dataset = model_and_dataset.partition(",")
    if dataset not in DATASETS:
        raise ValueError(f"Expected vit.py:MODEL,{{{','.join(DATASETS)}}}, got {model_and_dataset!r}.")
    config = fine_tuning()
    config.model = models.from_short_name(model)
    config.dataset = dataset
    config.pp.train, config.pp.test, config.total_steps = DATASETS[dataset]
    if (model, dataset) == ("b16", "cifar10"):
        config.base_lr = 0.01
    return config
