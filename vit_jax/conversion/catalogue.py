"""Published files that can be read: where they lie, how large they are, under which licence, and what they reach.

Sources: README of google-research/vision_transformer (AugReg's recommended files, its re-runs), FINETUNE.md and README of
facebookresearch/mae, README_deit.md and README_revenge.md of facebookresearch/deit, README of microsoft/unilm beit, the model
cards of the hub. Sizes: four bytes a parameter. BEiT's own server wants signed addresses: the hub's copies of the same files
are named. SimMIM's (vit_base__800ep) lie on Google Drive, which only a browser fetches: give `vit_jax.load` their path.
"""

from __future__ import annotations

import dataclasses
import re

from vit_jax.contracts import UserError

DALLE = "https://cdn.openai.com/dall-e"
GOOGLE, MAE, DEIT = "gs://vit_models", "https://dl.fbaipublicfiles.com/mae", "https://dl.fbaipublicfiles.com/deit"


@dataclasses.dataclass(frozen=True)
class Published:
    """One file. `top1`: its own published ImageNet-1k accuracy in %, None without such a head."""

    name: str
    path: str
    megabytes: int
    holds: str
    licence: str
    top1: float | None = None

    @property
    def sha256(self) -> str:
        """Its first digits where they are published: DeiT's file names end in eight, which its own code compares."""
        found = re.search(r"-([0-9a-f]{8})\.pth$", self.path)
        return found[1] if found else ""


# name: (file before and after fine-tuning at 384, MiB of both, top-1 after)
AUGREG = {
    "Ti_16": ("aug_none-wd_0.03-do_0.0-sd_0.0", "lr_0.03", 37, 22, 78.22),
    "S_32": ("aug_none-wd_0.1-do_0.0-sd_0.0", "lr_0.01", 118, 87, 79.58),
    "S_16": ("aug_light1-wd_0.03-do_0.0-sd_0.0", "lr_0.03", 115, 85, 83.73),
    "B_32": ("aug_light1-wd_0.1-do_0.0-sd_0.0", "lr_0.01", 398, 337, 83.59),
    "B_16": ("aug_medium1-wd_0.1-do_0.0-sd_0.0", "lr_0.03", 391, 331, 85.49),
    "L_16": ("aug_strong1-wd_0.1-do_0.0-sd_0.0", "lr_0.01", 1243, 1162, 85.59),
    "R_Ti_16": ("aug_none-wd_0.03-do_0.0-sd_0.0", "lr_0.03", 40, 24, 75.40),
    "R26_S_32": ("aug_light1-wd_0.1-do_0.0-sd_0.0", "lr_0.01", 170, 139, 83.85),
    "R50_L_32": ("aug_medium1-wd_0.1-do_0.1-sd_0.1", "lr_0.01", 1337, 1255, 85.99),
}


# name: (the hub's, MiB, what it holds, top-1). Codes are those of DALL-E's tokenizer; 22k heads have 21,841 classes.
BEIT = {
    "b16_pt22k": ("base-patch16-224-pt22k", 351, "codes of hidden patches, 224", None),
    "l16_pt22k": ("large-patch16-224-pt22k", 1188, "codes of hidden patches, 224", None),
    "b16_ft22k": ("base-patch16-224-pt22k-ft22k", 391, "22k head, 224", None),
    "l16_ft22k": ("large-patch16-224-pt22k-ft22k", 1243, "22k head, 224", None),
    "b16": ("base-patch16-224", 330, "ImageNet-1k head, 224", 85.2),
    "b16@384": ("base-patch16-384", 331, "ImageNet-1k head, 384", 86.8),
    "l16": ("large-patch16-224", 1161, "ImageNet-1k head, 224", 87.4),
    "l16@384": ("large-patch16-384", 1163, "ImageNet-1k head, 384", 88.4),
    "l16@512": ("large-patch16-512", 1166, "ImageNet-1k head, 512", 88.6),
}


def _augreg() -> list[Published]:
    found = []
    for size, (recipe, rate, megabytes, tuned_megabytes, top1) in AUGREG.items():
        stem = f"{GOOGLE}/augreg/{size}-i21k-300ep-lr_0.001-{recipe}"
        tuned = f"{stem}--imagenet2012-steps_20k-{rate}-res_384.npz"
        found.append(Published(f"augreg/{size}", f"{stem}.npz", megabytes, "21k head, 224", "Apache-2.0"))
        found.append(
            Published(f"augreg/{size}@384", tuned, tuned_megabytes, "ImageNet-1k head, 384", "Apache-2.0", top1)
        )
    return found


PUBLISHED = (
    *(
        Published(
            f"vit/{name}", f"{GOOGLE}/imagenet21k/{name}.npz", megabytes, "21k head, pre_logits, 224", "Apache-2.0"
        )
        for name, megabytes in (
            ("ViT-B_16", 394),
            ("ViT-B_32", 400),
            ("ViT-L_16", 1246),
            ("ViT-L_32", 1255),
            ("ViT-H_14", 2519),
            ("R50+ViT-B_16", 440),
        )
    ),
    *_augreg(),
    # big_vision's choice for this size (models/vit.py), which is in no table of the README.
    Published(
        "augreg/B_8",
        f"{GOOGLE}/augreg/B_8-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0.npz",
        391,
        "21k head, 224",
        "Apache-2.0",
    ),
    Published("mae/b16", f"{MAE}/pretrain/mae_pretrain_vit_base.pth", 327, "encoder", "CC-BY-NC 4.0"),
    Published("mae/l16", f"{MAE}/pretrain/mae_pretrain_vit_large.pth", 1157, "encoder", "CC-BY-NC 4.0"),
    Published("mae/h14", f"{MAE}/pretrain/mae_pretrain_vit_huge.pth", 2406, "encoder", "CC-BY-NC 4.0"),
    Published(
        "mae/visualize_l16",
        f"{MAE}/visualize/mae_visualize_vit_large.pth",
        1256,
        "decoder too, raw pixels",
        "CC-BY-NC 4.0",
    ),
    Published(
        "mae/visualize_l16_gan",
        f"{MAE}/visualize/mae_visualize_vit_large_ganloss.pth",
        1256,
        "decoder too, raw pixels",
        "CC-BY-NC 4.0",
    ),
    Published(
        "deit/ti16", f"{DEIT}/deit_tiny_patch16_224-a1311bcf.pth", 22, "ImageNet-1k head, 224", "Apache-2.0", 72.2
    ),
    Published(
        "deit/s16", f"{DEIT}/deit_small_patch16_224-cd65a155.pth", 84, "ImageNet-1k head, 224", "Apache-2.0", 79.9
    ),
    Published(
        "deit/b16", f"{DEIT}/deit_base_patch16_224-b5f2ef4d.pth", 330, "ImageNet-1k head, 224", "Apache-2.0", 81.8
    ),
    Published(
        "deit/ti16_distilled",
        f"{DEIT}/deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        23,
        "two heads, 224",
        "Apache-2.0",
        74.5,
    ),
    Published(
        "deit/s16_distilled",
        f"{DEIT}/deit_small_distilled_patch16_224-649709d9.pth",
        86,
        "two heads, 224",
        "Apache-2.0",
        81.2,
    ),
    Published(
        "deit/b16_distilled",
        f"{DEIT}/deit_base_distilled_patch16_224-df68dfff.pth",
        333,
        "two heads, 224",
        "Apache-2.0",
        83.4,
    ),
    Published("deit3/s16", f"{DEIT}/deit_3_small_224_1k.pth", 84, "ImageNet-1k head, 224", "Apache-2.0", 81.4),
    Published("deit3/b16", f"{DEIT}/deit_3_base_224_1k.pth", 330, "ImageNet-1k head, 224", "Apache-2.0", 83.8),
    Published("deit3/l16", f"{DEIT}/deit_3_large_224_1k.pth", 1161, "ImageNet-1k head, 224", "Apache-2.0", 84.9),
    Published("deit3/h14", f"{DEIT}/deit_3_huge_224_1k.pth", 2411, "ImageNet-1k head, 224", "Apache-2.0", 85.2),
    Published("hf/vit_b16", "hf:google/vit-base-patch16-224", 330, "ImageNet-1k head, 224", "Apache-2.0"),
    Published("hf/vit_b16_21k", "hf:google/vit-base-patch16-224-in21k", 330, "pooler, 224", "Apache-2.0"),
    Published("hf/mae_b16", "hf:facebook/vit-mae-base", 426, "decoder too", "Apache-2.0"),
    Published("hf/deit_b16", "hf:facebook/deit-base-patch16-224", 330, "ImageNet-1k head, 224", "Apache-2.0", 81.8),
    *(
        Published(f"beit/{name}", f"hf:microsoft/beit-{place}", megabytes, holds, "Apache-2.0", top1)
        for name, (place, megabytes, holds, top1) in BEIT.items()
    ),
    Published("tokenizer/dalle_encoder", f"{DALLE}/encoder.pkl", 205, "8,192 codes of 8 x 8 pixels", "modified MIT"),
    Published("tokenizer/dalle_decoder", f"{DALLE}/decoder.pkl", 167, "useful beside encoder.pkl", "modified MIT"),
    Published("tokenizer/flava", "hf:facebook/flava-image-codebook", 205, "the same encoder's codes", "BSD-3-Clause"),
)


def recommended_augreg(model: str) -> str:
    """The file, without .npz, that Google's code takes for a model such as "R_Ti_16": of the files pre-trained on
    ImageNet-21k the one with the best final accuracy there, which is the one their README recommends.

    Raises:
      UserError: a model without one.
    """
    known = {entry.name.removeprefix("augreg/"): entry.path for entry in PUBLISHED if entry.name.startswith("augreg/")}
    if model not in known:
        raise UserError(
            f"Expected an AugReg model with a recommended file ({', '.join(known)}), got {model!r}: set "
            "config.model_or_filename to a whole file name without .npz, or config.init_from to a file."
        )
    return known[model].rpartition("/")[2].removesuffix(".npz")
