"""Every field there is, with its default and its meaning. A config starts from here and may set nothing else.

Names are those of Google's ViT code (google-research/vision_transformer, vit_jax/configs/common.py) where it has them.
"""

from __future__ import annotations

import ml_collections


def either(default, *others):
    """A field that may hold values of several types (an int or a tuple, a number or None)."""
    del others  # they only say in the source what may come
    return ml_collections.config_dict.FieldReference(default, field_type=object)


def get_config() -> ml_collections.ConfigDict:
    """The defaults: plain supervised training of a ViT-B/16."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.objective = "classify"  # or "mae"

    # Data
    config.dataset = "digits"  # "digits", "fake", the path of a folder of pictures, or a TFDS name
    config.tfds_data_dir = either(None, "path")
    config.num_workers = 0  # worker processes for decoding; 0: threads of this process
    config.num_threads = 0  # decoding threads; 0: one a core
    config.prefetch = 2  # batches decoded ahead
    config.shuffle_buffer = 0  # read for Google's sake only: the order is a full shuffle of every epoch
    config.max_unreadable = 0.01  # share of unreadable pictures at which the run stops
    pp = config.pp = ml_collections.ConfigDict()
    pp.train, pp.test = "train", "test"  # splits, TFDS syntax: "train[:98%]"
    pp.crop = either(224, (224, 224))  # picture the model sees: pixels, or (height, width)
    pp.resize = either(None, 256)  # evaluation: short side before the centre crop; None: resized to the crop
    # "random_resized"; "random_resized_once" (one try, cut to the picture: MAE's linear probe); "simple" (pad and crop);
    # "resize"
    pp.train_crop = "random_resized"
    pp.crop_area = (0.05, 1.0)  # share of the picture that a random-resized crop covers
    pp.crop_aspect = (3 / 4, 4 / 3)
    pp.flip = True
    pp.randaugment = ""  # timm's names: "rand-m9-mstd0.5-inc1"
    pp.erasing = 0.0  # probability of random erasing
    pp.interpolation = "bilinear"
    pp.channels = 3
    pp.mean, pp.std = (0.5,), (0.5,)  # of pixels / 255: Google's [-1, 1]

    # Model
    config.model = model_defaults()
    config.mae = mae_defaults()
    config.compute_dtype = "bfloat16"  # of activations; parameters, norms, softmax and losses stay float32
    config.attention = "xla"  # or "cudnn": fused attention on NVIDIA GPUs
    config.remat = "none"  # "dots", "full": less memory, more time
    config.unroll = 1  # blocks per scan step; num_layers compiles to a plain loop

    # Optimiser
    config.batch, config.batch_eval = 512, 512
    config.accum_steps = 1  # micro-batches a step; the step equals the full batch
    config.optim = "sgd"  # "adamw", "lars"
    config.optim_dtype = "bfloat16"  # of the momentum
    config.momentum = 0.9
    config.b1, config.b2, config.adam_eps = 0.9, 0.999, 1e-8
    config.base_lr = 0.03
    config.lr_scaling = either(None, 256)  # lr = base_lr * batch / lr_scaling
    config.end_lr = 0.0
    config.decay_type = "cosine"  # or "linear", "constant", "step"
    config.decay_boundaries, config.decay_factor = (), 0.1  # "step": shares of the progress
    config.total_steps, config.total_epochs = either(10_000, None), either(None, 100)  # exactly one of the two
    config.warmup_steps, config.warmup_epochs = either(500, None), either(None, 5)
    config.grad_norm_clip = either(1.0, None)
    config.weight_decay = 0.0  # decoupled, times the learning rate (PyTorch's AdamW)
    config.weight_decay_rules = (("kernel$", 1.0), ("", 0.0))  # (pattern in the path, factor), first match wins
    config.layer_decay = either(None, 0.75)
    # Partial fine-tuning: the last blocks that train, with what comes after them; 0.5: the last MLP alone; 0: the head.
    config.train_blocks = either(None, 0.5)
    config.trust_coefficient = 0.001  # of "lars"
    config.ema = either(None, 0.9999)

    # Loss
    config.loss = "softmax"  # or "sigmoid"
    config.label_smoothing = 0.0
    config.mixup, config.cutmix = 0.0, 0.0  # Beta parameters, 0: off

    # Run
    # Weights to start from: another run's workdir, or a file of Google's, MAE's, DeiT's, timm's or a Hugging Face
    # folder. Resuming needs nothing but --workdir.
    config.init_from = either(None, "workdir or file")
    config.pretrained_dir = either(None, "folder")  # Google's way: start from <model_name>.npz in it
    config.topology = (
        ""  # TPU slice that the recipe was planned for (`vit-jax plan`): v5e:4x4; training takes what is there
    )
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.eval_every = 500  # steps; 0: only at the end
    config.progress_every = 50
    config.checkpoint_every = 500
    config.checkpoint_minutes = 15.0  # minutes, from 0: a checkpoint also after so long; 0: by steps alone
    config.keep_checkpoints = 2
    config.figures_every = 0  # steps between pictures; 0: only at the end
    config.max_skipped_steps = 10  # non-finite steps in a row at which the run stops
    # Seconds (a number from 0, or None) without a step before the run is taken for hung and ends with status 4; ten times
    # as long for compiling, evaluating, saving and drawing. None: 300, or 20 steps where that is longer; 0: never.
    config.hang_seconds = either(None, 600.0)
    return config.lock()


def transformer_defaults() -> ml_collections.ConfigDict:
    """One stack of blocks."""
    t = ml_collections.ConfigDict()
    t.num_layers, t.num_heads, t.mlp_dim = 12, 12, 3072
    t.dropout_rate, t.attention_dropout_rate = 0.0, 0.0
    t.drop_path = 0.0  # stochastic depth: linspace(0, drop_path, num_layers)
    t.layer_scale = 0.0  # initial value; 0: none
    return t


def model_defaults() -> ml_collections.ConfigDict:
    """ViT-B/16 as Google's."""
    m = ml_collections.ConfigDict()
    m.model_name = "ViT-B_16"
    m.patches = ml_collections.ConfigDict({"size": either((16, 16), 16)})
    m.resnet = ml_collections.ConfigDict()  # the hybrids' stem
    m.resnet.num_layers = either(None, (3, 4, 9))  # units of each stage; (): its root alone; None: no stem
    m.resnet.width_factor = 1
    m.hidden_size = 768
    m.transformer = transformer_defaults()
    m.classifier = "token"  # "gap", "map", "unpooled", "token_unpooled"
    m.cls_token = either(None, True)  # None: where the classifier needs it
    m.dist_token = False  # DeiT's distillation token
    m.dist_head = True  # and its own head; False: only the class token is classified
    m.norm_after_pool = False  # True: pool first, then the norm (MAE's and BEiT's fc_norm)
    m.head_norm = "none"  # "batch": affine-free BatchNorm before the head (linear probes)
    m.representation_size = either(None, 768)  # tanh layer before the head
    m.positions = "learn"  # "sincos2d" (big_vision's formula), "sincos2d_mae", "none"
    m.positions_std = either(0.02, None)  # learned tables; None: 1/sqrt(hidden_size)
    m.cls_position = True  # False: no row for the class token in the table (big_vision, DeiT III)
    m.train_positions = True  # False: a sin-cos table stays constant
    m.activation = "gelu_tanh"  # or "gelu_erf"
    m.norm_eps = 1e-6
    m.init = "google"  # or "mae": xavier over the fused qkv, xavier patches, class token normal(0.02)
    m.head_std, m.head_bias = 0.0, 0.0
    return m


def mae_defaults() -> ml_collections.ConfigDict:
    """The masked autoencoder's own fields, used with objective "mae"."""
    mae = ml_collections.ConfigDict()
    mae.num_visible = 49  # of 196 patches: the paper's 75% hidden
    mae.mask = "random"  # "block", "grid"
    mae.normalised_target = True  # per-patch normalised pixels
    mae.decoder = transformer_defaults()
    mae.decoder.hidden_size = 512
    mae.decoder.update({"num_layers": 8, "num_heads": 16, "mlp_dim": 2048})
    return mae
