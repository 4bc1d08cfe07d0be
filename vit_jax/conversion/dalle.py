"""DALL-E's tokenizer: OpenAI's encoder.pkl and decoder.pkl, whole pickled modules, and transformers' FlavaImageCodebook.

A folder with both files is a tokenizer with a decoder; encoder.pkl, or a FLAVA folder, is one that only gives codes. Names:
openai/DALL-E, encoder.py and decoder.py (`blocks.group_1.block_1.res_path.conv_1.w`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.contracts import Config, UserError
from vit_jax.conversion.describe import Description, blocks_of, shape_of
from vit_jax.conversion.files import Archive
from vit_jax.conversion.rules import SAME, Fixed, Layout, Rule
from vit_jax.conversion.timm import renamed
from vit_jax.conversion.told import Told
from vit_jax.models.dvae import dvae_config

FIRST = re.compile(r"(encoder\.|decoder\.)?blocks\.input\.(w|weight)$")
# transformers' spelling -> OpenAI's
SPELLING = (
    (r"\.group\.block_", ".block_"),
    (r"\.res_path\.path\.", ".res_path."),
    (r"\.weight$", ".w"),
    (r"\.bias$", ".b"),
)
KERNEL = Layout(lambda a: [np.transpose(a, (3, 2, 0, 1))], lambda t, shape: np.transpose(t[0], (2, 3, 1, 0)))
LARGEST = 4096  # pixels a side, for shapes that lie


def claims(names: Mapping[str, Any]) -> bool:
    """Whether tensors are named like this."""
    return any(FIRST.match(name) for name in names)


def normalised(archive: Archive) -> Archive:
    """OpenAI's spelling, under "encoder." and "decoder."; a file alone is an encoder, or it is refused."""
    both = any(name.startswith("encoder.") for name in archive.tensors)
    names = {}
    for name in archive.tensors:
        spelled = name if both else f"encoder.{name}"
        for theirs, ours in SPELLING:
            spelled = re.sub(theirs, ours, spelled)
        names[spelled] = name
    archive = archive._replace(tensors=renamed(archive.tensors, names))
    # An encoder looks at 7 x 7 pixels first, a decoder at one code.
    if shape_of(archive.tensors, "encoder.blocks.input.w", 4)[2:] == (1, 1):
        raise UserError("Expected encoder.pkl, this is a decoder alone: give the folder that holds both files.")
    return archive


def rules(config: Config, num_classes: int | None) -> list[Rule | Fixed]:
    """The table for a tokenizer of `config`."""
    cfg = dvae_config(config)
    halves = {"encoder": [cfg.encoder_width * 2**i for i in range(cfg.num_groups)]}
    before = {"encoder": cfg.encoder_width, "decoder": cfg.decoder_inputs}
    if cfg.decoder_width is not None:
        halves["decoder"] = [cfg.decoder_width * 2**i for i in reversed(range(cfg.num_groups))]
    table: list[Rule | Fixed] = []
    for half, widths in halves.items():
        table += conv(f"{half}.blocks.input", f"{half}/conv_input") + conv(
            f"{half}.blocks.output.conv", f"{half}/conv_output"
        )
        for group, (inputs, outputs) in enumerate(zip([before[half], *widths], widths, strict=False), 1):
            for block in range(1, cfg.blocks_per_group + 1):
                theirs, ours = f"{half}.blocks.group_{group}.block_{block}", f"{half}/group{group}/block{block}"
                for number in range(1, 5):
                    table += conv(f"{theirs}.res_path.conv_{number}", f"{ours}/conv{number}")
                if block == 1 and inputs != outputs:
                    table += conv(f"{theirs}.id_path", f"{ours}/conv_skip")
    return table


def conv(theirs: str, ours: str) -> list[Rule]:
    """Kernel and bias of a convolution."""
    return [Rule((f"{theirs}.w",), f"{ours}/kernel", KERNEL), Rule((f"{theirs}.b",), f"{ours}/bias", SAME)]


def describe(archive: Archive, given: Told, file_name: str) -> Description:
    """Sizes are the tensors'; the picture's size, which convolutions do not show, is `stored_size`, or 112 as BEiT's."""
    tensors, decoder = archive.tensors, "decoder.blocks.input.w" in archive.tensors
    width, channels, *_ = shape_of(tensors, "encoder.blocks.input.w", 4)
    groups = blocks_of(tensors, "encoder.blocks.group", "_") - 1  # counted from 1
    size = given.sides("stored_size", 112, most=LARGEST)
    fields = {
        "objective": "tokenizer",
        "tokenizer": {
            "vocab_size": shape_of(tensors, "encoder.blocks.output.conv.w", 4)[0],
            "num_groups": groups,
            "blocks_per_group": blocks_of(tensors, "encoder.blocks.group_1.block", "_") - 1,
            "encoder_width": width,
            "decoder_width": shape_of(tensors, "decoder.blocks.output.conv.w", 4)[1] if decoder else None,
            "decoder_inputs": shape_of(tensors, "decoder.blocks.input.w", 4)[0] if decoder else 128,
        },
        "pp": {
            "crop": size[0] if size[0] == size[1] else size,
            "crop_share": 1.0,
            "channels": channels,
            "mean": (0.0,),
            "std": (1.0,),
            "interpolation": "lanczos",
        },
    }
    return Description("flava" if archive.settings else "dalle", fields, None)
