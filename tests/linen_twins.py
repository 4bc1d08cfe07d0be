"""Google's ViT in Flax Linen, by its published names: the other side of the .npz tests. No code of ours in it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class StdConv(nn.Conv):
    def param(self, name, init_fn, *args, **kwargs):
        value = super().param(name, init_fn, *args, **kwargs)
        if name == "kernel":
            value = value - jnp.mean(value, axis=(0, 1, 2), keepdims=True)
            value = value / (jnp.std(value, axis=(0, 1, 2), keepdims=True) + 1e-5)
        return value


class Unit(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        kept = x
        if x.shape[-1] != 4 * self.width or self.stride != 1:
            kept = StdConv(4 * self.width, (1, 1), strides, use_bias=False, name="conv_proj")(x)
            kept = nn.GroupNorm(name="gn_proj")(kept)
        y = nn.relu(nn.GroupNorm(name="gn1")(StdConv(self.width, (1, 1), use_bias=False, name="conv1")(x)))
        y = nn.relu(nn.GroupNorm(name="gn2")(StdConv(self.width, (3, 3), strides, use_bias=False, name="conv2")(y)))
        y = nn.GroupNorm(name="gn3")(StdConv(4 * self.width, (1, 1), use_bias=False, name="conv3")(y))
        return nn.relu(kept + y)


class Stage(nn.Module):
    width: int
    units: int
    stride: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.units):
            x = Unit(self.width, self.stride if n == 0 else 1, name=f"unit{n + 1}")(x)
        return x


class Mlp(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        return nn.Dense(width, name="Dense_1")(nn.gelu(nn.Dense(self.mlp_dim, name="Dense_0")(x)))


class Block(nn.Module):
    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="MultiHeadDotProductAttention_0")(y, y)
        return x + Mlp(self.mlp_dim, name="MlpBlock_0")(nn.LayerNorm(name="LayerNorm_1")(x))


class PosEmbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))


class Transformer(nn.Module):
    depth: int
    heads: int
    mlp_dim: int
    positions: bool

    @nn.compact
    def __call__(self, x):
        if self.positions:
            x = PosEmbed(name="posembed_input")(x)
        for n in range(self.depth):
            x = Block(self.heads, self.mlp_dim, name=f"encoderblock_{n}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MapHead(nn.Module):
    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.broadcast_to(probe, (x.shape[0], *probe.shape[1:]))
        y = nn.MultiHeadDotProductAttention(self.heads, name="MultiHeadDotProductAttention_0")(probe, x)
        return (y + Mlp(self.mlp_dim, name="MlpBlock_0")(nn.LayerNorm(name="LayerNorm_0")(y)))[:, 0]


class GoogleViT(nn.Module):
    """`big_vision`: positions before the class token and outside the transformer; `pool` "token", "gap" or "map"."""

    patch: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    classes: int
    resnet: tuple | None = None
    pool: str = "token"
    pre_logits: int | None = None
    big_vision: bool = False

    @nn.compact
    def __call__(self, x):
        if self.resnet is not None:
            x = StdConv(64, (7, 7), (2, 2), use_bias=False, name="conv_root")(x)
            x = nn.relu(nn.GroupNorm(name="gn_root")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for n, units in enumerate(self.resnet):
                x = Stage(64 * 2**n, units, 1 if n == 0 else 2, name=f"block{n + 1}")(x)
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        if self.big_vision:
            x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        if self.pool == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)
        x = Transformer(self.depth, self.heads, self.mlp_dim, not self.big_vision, name="Transformer")(x)
        if self.pool == "token":
            x = x[:, 0]
        elif self.pool == "gap":
            x = x.mean(axis=1)
        else:
            x = MapHead(self.heads, self.mlp_dim, name="MAPHead_0")(x)
        if self.pre_logits:
            x = jnp.tanh(nn.Dense(self.pre_logits, name="pre_logits")(x))
        return nn.Dense(self.classes, name="head")(x)


def random_weights(model, pictures, seed=0):
    """Flat names -> arrays away from their initial zeros and ones."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures)["params"]
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        name = "/".join(entry.key for entry in path)
        fan = np.prod(leaf.shape[:-1]) if name.endswith("kernel") else 1.0
        scale = 0.3 if not name.endswith("kernel") else 1.0 / np.sqrt(max(fan, 1.0))
        base = 1.0 if name.endswith("scale") else 0.0
        flat[name] = (base + scale * rng.standard_normal(leaf.shape)).astype(np.float32)
    return flat


def apply(model, flat, pictures):
    """Logits by Linen, from flat names."""
    tree = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = jnp.asarray(value)
    with jax.numpy_rank_promotion("allow"):  # Linen's layers broadcast silently
        return np.asarray(jax.jit(model.apply)({"params": tree}, pictures))
