"""The plan's numbers against counts by hand and against the programs they describe."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.networks import TOKENIZER, for_tiny_networks
from vit_jax import UserError, configuration, sharding, train
from vit_jax.commands import cli
from vit_jax.frozen import planned
from vit_jax.planning import hlo
from vit_jax.planning.chips import CHIPS, chip_of, slice_devices
from vit_jax.planning.planner import make_plan, report, schedule
from vit_jax.planning.search import as_flags, changed, make_it_fit, meshes, remedies, search
from vit_jax.weights import open_weights

SMALL = ["--set", "batch=16", "dataset=fake", "model.hidden_size=16", "model.transformer.num_layers=2",
         "model.transformer.num_heads=2", "model.transformer.mlp_dim=32"]  # fmt: skip


def has_libtpu():
    try:
        return bool(slice_devices("v5e:2x2"))
    except UserError:
        return False


needs_libtpu = pytest.mark.skipif(not has_libtpu(), reason="the TPU compiler is not installed (pip install libtpu)")


@pytest.fixture
def tiny(small):
    config = small("scratch")
    config.model.transformer.num_layers = 3
    return config


def test_products_in_loops_are_counted_as_often_as_they_run():
    def looped(x):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ carry), None), x, None, length=7)[0] @ x

    text = jax.jit(looped).lower(jax.ShapeDtypeStruct((24, 24), jnp.float32)).compile().as_text()
    assert hlo.Program(text).flops() == 8 * 2 * 24**3


def test_a_counter_that_strides_runs_less_often():
    """libtpu unrolls its products in pieces and counts by twos."""
    text = """
%body (p: (u32[], f32[4,4])) -> (u32[], f32[4,4]) {
  %two = u32[] constant(2)
  %p = (u32[], f32[4,4]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = u32[] add(%i, %two)
  ROOT %t = (u32[], f32[4,4]{1,0}) tuple(%next, %y)
}

%test (p: (u32[], f32[4,4])) -> pred[] {
  %p = (u32[], f32[4,4]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %end = u32[] constant(8)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (a: (u32[], f32[4,4])) -> (u32[], f32[4,4]) {
  %a = (u32[], f32[4,4]{1,0}) parameter(0)
  ROOT %w = (u32[], f32[4,4]{1,0}) while(%a), condition=%test, body=%body
}
"""
    assert hlo.Program(text).flops() == 4 * 2 * 4**3


def test_exchanges_are_counted_by_kind_and_bytes():
    """A sum of [8, 100] float32 over 8 devices: 400 bytes, sent twice but for one's own eighth."""
    mesh = sharding.make_mesh({"data": 8})
    split = NamedSharding(mesh, PartitionSpec("data"))

    def total(x):
        return jnp.sum(x, axis=0)

    text = jax.jit(total, in_shardings=split, out_shardings=sharding.replicated(mesh)).lower(
        jax.ShapeDtypeStruct((8, 100), jnp.float32)
    )
    (found,) = hlo.Program(text.compile().as_text()).collectives()
    assert (found.kind, found.group, found.times) == ("all-reduce", 8, 1)
    assert found.bytes == 2 * 400 * 7 / 8


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", 4),
        ("replica_groups=[16,2]<=[32], x", 2),
        ("replica_groups=mesh['axis_0'=128,'axis_1'=1,'axis_3'=2] {'axis_0','axis_3'}, x", 256),
        ("replica_groups=mesh['a'=2,'b'=128], device_ids=([128,2]T(1,0)) {'b'}, x", 128),
        ("replica_groups=mesh['a'=8] {'a':(2)4}, x", 4),
    ],
)
def test_groups_in_every_spelling(groups, size):
    assert hlo._group_size(groups) == size


def test_a_tpus_products_are_convolutions():
    """2 x 16 x 104 x 256 x 256 products of attention, written as a convolution of a dilated picture (as libtpu does)."""
    rest = "%a, %b), window={size=16x16 stride=15x15 lhs_dilate=16x16}, dim_labels=0f1b_01oi->01bf, metadata={}"
    operands = {"%a": [16, 256, 16, 104], "%b": [16, 16, 256, 256]}
    found = hlo._convolution_flops(rest, operands["%a"], operands["%b"], [16, 16, 104, 256])
    assert found == 2 * 16 * 16 * 104 * 256 * 256


def test_memory_traffic_takes_slices_of_stacks_not_stacks():
    """Ten rows of a [10, 1000] stack are read once each, not ten times whole."""

    def looped(stack, x):
        return jax.lax.scan(lambda carry, row: (carry + row, None), x, stack)[0]

    shapes = jax.ShapeDtypeStruct((10, 1000), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.float32)
    moved = hlo.Program(jax.jit(looped).lower(*shapes).compile().as_text()).moved()
    assert 10 * 3 * 4000 <= moved <= 10 * 3 * 4000 + 10_000


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("stage", ["scratch", "pretrain"])
def test_local_plans_are_the_program_that_trains(small, stage, remat):
    config = small(stage, remat=remat)
    plan = make_plan(config, 10, jax.devices()[:1])
    assert plan.fits
    assert plan.traced_flops == plan.compiled_flops
    assert (plan.traced_flops > plan.model_flops) == (remat == "full")
    assert plan.collectives == {}
    assert plan.seconds == {}  # no data sheet of a CPU, no promise
    state_bytes = plan.parameters * 3 * 4  # and Adam's two moments; the batch is small
    assert state_bytes <= plan.memory.arguments <= state_bytes + 20_000
    rows = report(plan, config, 1000, None)
    assert "step_seconds" not in rows
    assert rows["schedule"] == {"steps": 6}


@pytest.mark.slow
def test_a_frozen_tokenizer_lies_there_and_is_counted(small, tmp_path, capsys):
    """BEiT with one trained for a step: its parameters are arguments of the step and part of no state."""
    made = small("pretrain,tokenizer", total_steps=1, warmup_steps=0)
    made.tokenizer.update(TOKENIZER | {"encoder_width": 64})
    train.run(made, tmp_path / "tokenizer")
    params = open_weights(tmp_path / "tokenizer")[0].params
    count = sum(value.size for path, value in params.items() if path.startswith("encoder/"))  # what a step asks
    assert count < sum(value.size for value in params.values())
    config = for_tiny_networks(small("pretrain,beit"))
    config.beit.tokenizer = str(tmp_path / "tokenizer")
    plan = make_plan(config, 10, jax.devices()[:1], planned(config))
    assert plan.frozen == {"tokenizer": count}
    expected = 4 * (3 * plan.parameters + count)
    assert 4 * count > 100_000 > 20_000 > plan.memory.arguments - expected >= 0
    capsys.readouterr()
    given = ["--config=digits.py:pretrain,beit", f"--config.beit.tokenizer={tmp_path}/tokenizer", "--local", *SMALL]
    assert cli.main(["plan", *given, "beit.vocab_size=16", "pp.channels=3"]) == 0
    assert f"tokenizer (not trained)    {count:,}\n" in capsys.readouterr().out


def test_schedules_in_chip_hours(tiny):
    plan = make_plan(tiny, 10, jax.devices())._replace(seconds={"compute": 0.5, "network": 2.0})
    tiny.total_steps, tiny.total_epochs = None, 3
    found = schedule(plan, tiny, examples=16 * 600)
    assert found == {"steps": 1800, "hours": 1.0, "chip_hours": 8.0}


def test_remedies_go_from_cheap_to_dear(tiny):
    tiny.mesh.update({"data": -1, "fsdp": 1})
    flags = [as_flags(changes) for changes in remedies(tiny, 4)]
    assert flags[0] == "--config.mesh.data=1 --config.mesh.fsdp=-1 --config.mesh.tensor=1"
    assert [flag.split()[-1] for flag in flags[1:]] == [
        "--config.remat=dots", "--config.remat=full", "--config.accum_steps=2", "--config.accum_steps=4",
    ]  # fmt: skip
    assert configuration.load("mae.py:b16").remat == changed(configuration.load("mae.py:b16"), {"batch": 8}).remat


def test_sensible_meshes_multiply_to_the_devices(tiny):
    found = meshes(tiny, 64)
    assert {"data": 1, "fsdp": 64, "tensor": 1} in found
    assert {"data": 64, "fsdp": 1, "tensor": 1} in found
    assert {"data": 1, "fsdp": 32, "tensor": 2} in found
    assert all(size["tensor"] in (1, 2) for size in found)  # two heads
    assert all(np.prod(list(sizes.values())) == 64 for sizes in found)


def test_search_ranks_what_fits_by_time(tiny, monkeypatch):
    plan = make_plan(tiny, 10, jax.devices())
    seconds = {8: 3.0, 2: 1.0, 1: 2.0, 4: 9.0}

    def by_fsdp(config, classes, devices, *_):
        sizes = sharding.resolve(dict(config.mesh), 8)
        enough = config.remat == "full" or sizes["fsdp"] > 1
        made = plan._replace(mesh=sizes, settings={"remat": config.remat}, seconds={"compute": seconds[sizes["fsdp"]]})
        return made if enough else made._replace(limit=1.0)

    monkeypatch.setattr("vit_jax.planning.search.make_plan", by_fsdp)
    tiny.remat = "none"
    found = search(tiny, 10, jax.devices(), lambda line: None)
    assert [(p.mesh["fsdp"], p.mesh["tensor"], p.settings["remat"]) for p in found] == [
        (2, 1, "none"), (1, 1, "full"), (8, 1, "none"), (4, 2, "none"),
    ]  # fmt: skip


def test_what_fits_is_found_by_trying(tiny, monkeypatch):
    plan = make_plan(tiny, 10, jax.devices())
    made = []

    def fits_with_full_remat(config, classes, devices, *_):
        made.append(config.remat)
        return plan._replace(limit=None if config.remat == "full" else 1.0)

    monkeypatch.setattr("vit_jax.planning.search.make_plan", fits_with_full_remat)
    changes, _ = make_it_fit(tiny, 10, jax.devices(), lambda line: None)
    assert changes["remat"] == "full"
    assert made == ["none", "dots", "full"]
    monkeypatch.setattr("vit_jax.planning.search.make_plan", lambda *_: plan._replace(limit=1.0))
    assert make_it_fit(tiny, 10, jax.devices(), lambda line: None) is None


def test_the_command_on_local_devices(capsys):
    assert cli.main(["plan", "--config=digits.py:scratch", "--local", *SMALL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["fits"]
    assert rows["devices"] == 8
    assert rows["collectives"]["all-reduce"]["bytes"] > 0
    assert cli.main(["plan", "--config=digits.py:scratch", "--local", *SMALL, "--mesh", "data=2,fsdp=2,tensor=2"]) == 0
    assert "data=2, fsdp=2, tensor=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v5e:3by3"], "TPU slice such as"),
        ([], "--topology or --local"),
        (["--local", "--mesh", "data=3"], r"config.mesh"),
        (["--local", "--set", "no_such=1"], "known config field"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, capsys):
    assert cli.main(["plan", "--config=digits.py:scratch", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_chips_are_told_apart():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    assert chip_of(Device("TPU v5 lite")).name == "TPU v5e"
    assert chip_of(Device("TPU v5")).name == "TPU v5p"
    assert chip_of(Device("TPU v6 lite")).memory == 32 * 2**30
    assert chip_of(Device("cpu")) is None
    assert all(chip.flops > 1e14 for chip in CHIPS.values())


@needs_libtpu
@pytest.mark.parametrize(("topology", "count"), [("v4:2x2x4", 16), ("v5e:4x8", 32), ("v5p:2x2x4", 16), ("v6e:4x4", 16)])
def test_slices_that_are_not_there(topology, count):
    devices = slice_devices(topology)
    assert len(devices) == count
    assert chip_of(devices[0]) is not None


def plan_in_a_process(*arguments):
    """A process of its own: this one has its eight pretended devices."""
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.commands.cli", "plan", *arguments, "--json"],
        capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


@pytest.mark.parametrize("recipe", ["vit_scratch.py:b16", "vit_scratch.py:l16", "vit_scratch.py:h14",
                                    "vit_scratch.py:bigg14", "mae.py:b16", "mae.py:l16", "mae.py:h14"])  # fmt: skip
def test_published_sizes_ship_with_a_slice_that_takes_their_batch(recipe):
    """docs/performance.md has the plans; here: the slice exists, and batch and heads divide over it."""
    config = configuration.load(recipe)
    sizes = sharding.resolve(dict(config.mesh), math.prod(int(n) for n in config.topology.split(":")[1].split("x")))
    assert config.batch % (sizes["data"] * sizes["fsdp"] * config.accum_steps) == 0
    assert recipe.split(":")[1] in (pathlib.Path("docs") / "performance.md").read_text()


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_exits_1_and_names_what_does():
    status, rows, words = plan_in_a_process(
        "--config=vit_scratch.py:b16",
        "--topology=v5e:1x1",
        "--set",
        "batch=512",
        "model.transformer.num_layers=2",
        "remat=none",
    )
    assert status == 1, words
    assert not rows["fits"]
    assert rows["fits_with"] == "--config.remat=dots"
    assert "Ran out of memory" in rows["refusal"]


@needs_libtpu
@pytest.mark.slow
def test_beits_step_holds_dall_es_tokenizer_on_every_chip():
    """Bytes by hand: parameters and Adam's two moments, the tokenizer's encoder, 128 pictures of 224 and of 112 pixels."""
    status, rows, words = plan_in_a_process("--config=beit.py:b16", "--topology=v5e:4x4")
    assert status == 0, words
    assert rows["parameters"] == 91_965_776
    assert rows["frozen_parameters"] == {"tokenizer": 53_786_240}  # its encoder; the decoder's 43,829,766 stay away
    by_hand = 12 * 91_965_776 + 4 * 53_786_240 + 128 * 3 * (224**2 + 112**2)
    assert by_hand <= rows["argument_bytes"] <= 1.01 * by_hand


@needs_libtpu
@pytest.mark.slow
def test_vit_g_on_256_chips_has_its_parameters_truly_sharded():
    """Scaling ViT's G/14 at a global batch of 4096: the real step, compiled for v5e:16x16."""
    status, rows, words = plan_in_a_process(
        "--config=vit_scratch.py:bigg14", "--topology=v5e:16x16", "--set", "batch=4096"
    )
    assert status == 0, words
    assert rows["devices"] == 256
    assert rows["argument_bytes"] < 0.25 * 2**30
    assert rows["analytic_flops"] == rows["compiled_flops"]
    assert rows["collectives"]["all-gather"]["times"] > 0
