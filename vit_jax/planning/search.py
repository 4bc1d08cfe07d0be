"""Settings that make a step fit, and meshes ranked: both found by compiling, not by rules of thumb."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax import sharding
from vit_jax.contracts import Config, UserError
from vit_jax.methods.method import NO_NETWORKS, Networks
from vit_jax.planning.planner import Plan, make_plan

Say = Callable[[str], None]


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """A copy of `config` with fields set, "mesh.fsdp" reaching into sections."""
    made: Any = copy.deepcopy(config)
    made.update_from_flattened_dict(changes)
    return made


def remedies(config: Config, devices: int) -> Iterator[dict[str, Any]]:
    """Changes to try, each on top of the one before, from what costs least time to what costs most."""
    made: dict[str, Any] = {}
    sizes = sharding.resolve(dict(config["mesh"]), devices)
    if sizes["data"] > 1:
        made |= {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": sizes["tensor"]}
        yield dict(made)
    order = ("none", "dots", "full")
    for remat in order[order.index(config["remat"]) + 1 :]:
        made["remat"] = remat
        yield dict(made)
    accum, ways = config["accum_steps"], devices // sizes["tensor"]
    while config["batch"] % (2 * accum * ways) == 0:
        accum *= 2
        made["accum_steps"] = accum
        yield dict(made)


def make_it_fit(
    config: Config, num_classes: int, devices: list[Any], say: Say, networks: Networks = NO_NETWORKS
) -> tuple[dict[str, Any], Plan] | None:
    """The first remedy whose compiled step fits, with its plan; None where none does."""
    for changes in remedies(config, len(devices)):
        plan = make_plan(changed(config, changes), num_classes, devices, networks)
        say(f"  tried {as_flags(changes)}: {'fits' if plan.fits else 'does not fit'}")
        if plan.fits:
            return changes, plan
    return None


def meshes(config: Config, devices: int) -> list[dict[str, int]]:
    """The sensible ones: parameters split over all, a quarter, a sixteenth or none of the devices; heads over 2 and 4."""
    fsdp = [devices // share for share in (1, 4, 16, devices) if devices % share == 0]
    found = [{"data": devices // size, "fsdp": size, "tensor": 1} for size in dict.fromkeys(fsdp)]
    heads = config["model"]["transformer"]["num_heads"]
    found += [
        {"data": 1, "fsdp": devices // tensor, "tensor": tensor}
        for tensor in (2, 4)
        if devices % tensor == 0 and heads % tensor == 0 and devices > tensor
    ]
    return found


def search(
    config: Config, num_classes: int, devices: list[Any], say: Say, networks: Networks = NO_NETWORKS
) -> list[Plan]:
    """Plans of all sensible meshes, the fastest that fits first; `remat` goes to "full" where a mesh needs it."""
    plans = []
    for sizes in meshes(config, len(devices)):
        wanted = changed(config, {f"mesh.{axis}": size for axis, size in sizes.items()})
        try:
            plan = make_plan(wanted, num_classes, devices, networks)
            if not plan.fits and config["remat"] != "full":
                plan = make_plan(changed(wanted, {"remat": "full"}), num_classes, devices, networks)
        except UserError as error:
            say(f"  {sizes}: {error}")
            continue
        say(f"  tried {sizes} with remat {plan.settings['remat']}: {'fits' if plan.fits else 'does not fit'}")
        plans.append(plan)
    return sorted(plans, key=lambda plan: (not plan.fits, plan.step_seconds or float("inf")))


def as_flags(changes: dict[str, Any]) -> str:
    """As they are typed: --config.remat=full."""
    return " ".join(f"--config.{field}={value}" for field, value in changes.items())
