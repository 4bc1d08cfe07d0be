"""What a method is: a value of one type, which the loop, the commands and the plans ask, whatever its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vit_jax.contracts import Config
from vit_jax.ops.means import Mean

Inputs = dict[str, Any]  # arrays with a leading "b"
Means = dict[str, Mean]  # per example: total and count of shape "b"; total may have further axes, as a histogram has
AT_THE_END = np.iinfo(np.int32).max  # a step after all of them


class Objective(NamedTuple):
    """What is learned, in two halves.

    `prepare(Batch on the device, key, train) -> inputs` sees the whole batch once: pixels to floats, mixing, masks, whatever
    needs neighbours or must not depend on micro-batches. `losses(model, inputs, keys, train) -> (loss, metrics)` sees any
    slice of that and gives one (total, count) an example, so slices add up to the full batch exactly. What changes over the
    run (a temperature) comes from `schedules(step)`: numbers that `losses` finds among its inputs. What frozen networks say
    of the batch comes from `consult(inputs, **networks)`: of any slice, inputs with targets in place of what only they see.
    """

    prepare: Callable[[Any, Key[Array, ""], bool], Inputs]
    losses: Callable[[Any, Inputs, Key[Array, " b"] | None, bool], tuple[Mean, Means]]
    schedules: Callable[[Int[Array, ""]], dict[str, Float[Array, ""]]] = lambda step: {}
    consult: Callable[..., Inputs] = lambda inputs: inputs

    def inputs(self, batch: Any, key: Key[Array, ""], train: bool, step: Any = AT_THE_END) -> Inputs:
        """`prepare`, and what `schedules` says, one an example. Evaluation is at the end of every schedule."""
        now = self.schedules(jnp.asarray(step, jnp.int32))
        return self.prepare(batch, key, train) | {
            name: jnp.broadcast_to(value, batch.weight.shape) for name, value in now.items()
        }


class Frozen(NamedTuple):
    """A network that a method uses and does not train: a tokenizer, a teacher. Any weights that can be loaded will do.

    It is an argument of the step, laid out like parameters, and no part of State. Only what `asked` leaves of it is: the rest
    (a tokenizer's decoder, which figures use) stays with the host. Its checksum is that of the whole.
    """

    field: str  # of the config: where its weights are. `{field}_sha256` says which they are, and is kept in checkpoints
    recipe: str  # the configuration that stands for it in plans, where no weights are given
    fits: Callable[[Config, Config], None]  # (its configuration, the run's); raises UserError where it cannot be used
    # Its configuration -> that of the part which `consult` asks, its parameters under the same paths; None: all of it.
    asked: Callable[[Config], Config] | None = None


class Network(NamedTuple):
    """A network apart from its parameters: NumPy arrays, or in a plan their shapes."""

    graph: Any
    params: Any
    asked: Any = None  # the Network that is the part of it which lies on the devices; None: all of it


class Networks(dict[str, Network]):
    """Frozen networks by name."""

    @property
    def asked(self) -> Networks:
        """What `consult` asks of them."""
        return Networks({name: network.asked or network for name, network in self.items()})

    def whole(self) -> dict[str, Any]:
        """The networks with all of their parameters, for figures."""
        return {name: nnx.merge(network.graph, network.params) for name, network in self.items()}

    def merged(self, *frozen: Mapping[str, Any]) -> dict[str, Any]:
        """The networks with parameters: those of `frozen[0]`, which need not be there for no networks."""
        return {name: nnx.merge(network.graph, frozen[0][name]) for name, network in self.items()}


NO_NETWORKS = Networks()


class Drawing(NamedTuple):
    """What there is to see of pictures: columns by title, floats in [0, 1], a row a picture, and a note below them."""

    columns: Mapping[str, Float[np.ndarray, "b H W c"]]
    note: str


# (model, uint8 pictures, config, *, seed, **networks) -> Drawing. `seed` decides masks; the fields of the method's own
# section are read from the config, so that others than those of training can be looked at. `networks`: the frozen ones.
Draw = Callable[..., Drawing]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train. Each file of this room ends in one."""

    # (config, classes, rngs) -> the backbone and what is added to it
    build: Callable[[Config, int | None, nnx.Rngs], Any]
    # (config, classes) -> what is learned
    objective: Callable[[Config, int | None], Objective]
    # (model, pixels) -> what the whole model gives, with nothing random: to compare two models by
    outputs: Callable[[Any, Float[Array, "b H W c"]], Array]
    # (what the model says, config) -> probabilities or numbers; of a method that learns from labels, None of others
    answers: Callable[[Array, Config], Array] | None = None
    # Attribute of the model, and first step of its parameters' paths; "": the model itself
    backbone_at: str = ""
    # config -> lines of what was derived from other fields
    in_words: Callable[[Config], list[str]] = lambda config: []
    # None: there is nothing to see
    picture: Draw | None = None
    # Averages over all pictures -> what is recorded: numbers that arrays (a histogram) come down to
    summary: Callable[[dict[str, Any]], dict[str, float]] = dict
    # Networks that it uses and does not train, by the names that `consult` and `picture` know them by
    frozen: Mapping[str, Frozen] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> bool:
        """Whether it learns from labels: classes are None otherwise. Its losses then ask the model once, for `answers`."""
        return self.answers is not None

    def backbone(self, model: Any) -> Any:
        """What transfers, is probed, embedded, looked into and exported."""
        return getattr(model, self.backbone_at) if self.backbone_at else model

    @property
    def prefix(self) -> str:
        """Of the backbone's parameters in the paths of the model's."""
        return f"{self.backbone_at}/" if self.backbone_at else ""
