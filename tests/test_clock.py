"""The compiler's cycles against sums by hand, and a real compilation whose parts are all of it."""

import jax
import pytest

from tests.test_planning import needs_libtpu, plan_in_a_process
from vit_jax.commands import cli
from vit_jax.planning.chips import CHIPS
from vit_jax.planning.clock import estimate, part_named, work
from vit_jax.planning.hlo import Program
from vit_jax.planning.planner import make_plan, report
from vit_jax.visualisation.step_profile import draw

V5E = CHIPS["TPU v5 lite"]


def cycles(count):
    return f'backend_config={{"flag_configs":[],"window_config":{{"kernel_window_bounds":[],"estimated_cycles":"{count}"}}}}'


def named(scopes):
    return f'metadata={{op_name="jit(step)/{scopes}" stack_frame_id=7}}'


# A loop of 5, in it a fusion (100 cycles, whose inner fusion says 999 of its own), a copy (20) and a kernel; a conditional
# of 10 or 30 cycles; an inner loop of 3 times 2 within the dearer branch; a call (4 + 1).
MLP = named("transpose(jvp(loss))/mlp/dot_general")
LOOPED = f"""
HloModule jit_step

%inner (p: bf16[8,4]) -> bf16[8,8] {{
  %p = bf16[8,4]{{1,0}} parameter(0)
  ROOT %d = bf16[8,8]{{1,0}} dot(%p, %p), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}, {MLP}
}}

%fused (p: bf16[8,4]) -> bf16[8,8] {{
  %p = bf16[8,4]{{1,0}} parameter(0)
  %q = bf16[8,8]{{1,0}} fusion(%p), kind=kOutput, calls=%inner, {cycles(999)}
  ROOT %t = bf16[8,8]{{1,0}} tanh(%q), {named("norm/tanh")}
}}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {{
  %one = s32[] constant(1)
  %p = (s32[], bf16[8,4]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[8,4]{{1,0}} get-tuple-element(%p), index=1
  %f = bf16[8,8]{{1,0}} fusion(%x), kind=kOutput, calls=%fused, {named("norm/tanh")}, {cycles(100)}
  %c = bf16[8,4]{{0,1}} copy(%x), {named("attention/transpose")}, {cycles(20)}
  %k = bf16[8,4]{{1,0}} custom-call(%c), custom_call_target="tpu_custom_call", {named("attention/pallas")}
  %a = bf16[8,4]{{1,0}} custom-call(), custom_call_target="AllocateBuffer"
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], bf16[8,4]{{1,0}}) tuple(%next, %k)
}}

%test (p: (s32[], bf16[8,4])) -> pred[] {{
  %p = (s32[], bf16[8,4]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}}

%again (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %one = s32[] constant(1)
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %y = f32[8]{{0}} negate(%x), {named("optimiser/neg")}, {cycles(2)}
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[8]{{0}}) tuple(%next, %y)
}}

%thrice (p: (s32[], f32[8])) -> pred[] {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}}

%cheap (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  ROOT %y = (s32[], f32[8]{{0}}) fusion(%p), kind=kLoop, calls=%none, {named("inputs/mul")}, {cycles(10)}
}}

%dear (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %w = (s32[], f32[8]{{0}}) while(%p), condition=%thrice, body=%again
  ROOT %y = (s32[], f32[8]{{0}}) fusion(%w), kind=kLoop, calls=%none, {named("head/mul")}, {cycles(24)}
}}

%none (p: f32[8]) -> f32[8] {{
  ROOT %p = f32[8]{{0}} parameter(0)
}}

%called (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %z = f32[8]{{0}} broadcast(%p), {cycles(1)}
  ROOT %y = f32[8]{{0}} convert(%p), {cycles(4)}
}}

ENTRY %main (a: (s32[], bf16[8,4]), b: (s32[], f32[8]), s: s32[]) -> (s32[], bf16[8,4]) {{
  %a = (s32[], bf16[8,4]{{1,0}}) parameter(0)
  %b = (s32[], f32[8]{{0}}) parameter(1)
  %s = s32[] parameter(2)
  %o = (s32[], f32[8]{{0}}) conditional(%s, %b, %b), branch_computations={{%cheap, %dear}}
  %x = f32[8]{{0}} get-tuple-element(%o), index=1
  %e = f32[8]{{0}} call(%x), to_apply=%called
  ROOT %w = (s32[], bf16[8,4]{{1,0}}) while(%a), condition=%test, body=%body
}}
"""

# Exchanges of 1000 float32 over 4 devices: 2 x 4000 x 3/4 = 6000 bytes by a reduction that nothing hides, 3000 by a gather
# within a product's fusion (75 cycles), 1000 by a gather that begins and ends apart.
EXCHANGED = f"""
%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}}

%pieces (p: f32[250]) -> f32[1000] {{
  %p = f32[250]{{0}} parameter(0)
  ROOT %g = f32[1000]{{0}} all-gather(%p), channel_id=2, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
}}

ENTRY %main (x: f32[1000], y: f32[250]) -> f32[1000] {{
  %x = f32[1000]{{0}} parameter(0)
  %y = f32[250]{{0}} parameter(1)
  %r = f32[1000]{{0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1,2,3}}}}, to_apply=%sum
  %f = f32[1000]{{0}} fusion(%y), kind=kCustom, calls=%pieces, {named("mlp/dot_general")}, {cycles(75)}
  %s = (f32[250]{{0}}, f32[500]{{0}}) all-gather-start(%y), channel_id=3, replica_groups={{{{0,1}},{{2,3}}}}, dimensions={{0}}
  %d = f32[500]{{0}} all-gather-done(%s)
  ROOT %z = f32[1000]{{0}} add(%r, %f)
}}
"""


def test_cycles_by_hand():
    """5 x (100 + 20) of the loop, 3 x 2 + 24 of the dearer branch, 4 + 1 of the call. Of a fusion only its own figure."""
    done = work(Program(LOOPED))
    assert done.cycles == {"MLP": 500, "copies": 100, "optimiser": 6, "head": 24, "casts": 4, "fills with zeros": 1}
    assert +done.flops == {"MLP": 5 * 2 * 8 * 8 * 4}
    assert done.flops.total() == Program(LOOPED).flops()
    assert done.uncounted == {"tpu_custom_call": 5}


def test_exchanges_are_added_unless_something_hides_them():
    found = estimate(Program(EXCHANGED), V5E)
    assert found.apart == 6000 / 200e9
    assert found.overlapped == (3000 + 1000) / 200e9
    assert found.hertz == pytest.approx(1.5e9, rel=0.01)
    assert found.seconds == pytest.approx(75 / found.hertz + 30e-9)  # 50 ns of computation hide 20 ns of gathers
    slow = found._replace(overlapped=1.0)
    assert slow.seconds == 1.0 + 30e-9


@pytest.mark.parametrize("text", [LOOPED, EXCHANGED])
def test_parts_sum_to_the_step(text):
    found = estimate(Program(text), V5E)
    parts = found.profile(V5E)
    assert sum(part["cycles"] for part in parts.values()) == round(found.seconds * found.hertz)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1.0)
    assert [part["cycles"] for part in parts.values()] == sorted((p["cycles"] for p in parts.values()), reverse=True)


def test_share_of_peak_by_hand():
    """2560 FLOP in 500 cycles of 131,072."""
    parts = estimate(Program(LOOPED), V5E).profile(V5E)
    assert parts["MLP"]["share_of_peak"] == pytest.approx(2560 / (500 * 131_072))
    assert parts["copies"]["share_of_peak"] == 0.0


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(step)/optimiser/div", "optimiser"),
        ("jit(step)/inputs/masks/jit(argsort)/sort", "masks"),
        ("jit(step)/jvp(loss/patches)/add", "patches"),
        ("jit(step)/transpose(jvp(loss))/blocks/while/body/closed_call/checkpoint/attention/qkv/dot_general", "qkv"),
        ("jit(step)/jvp(loss)/blocks/while/body/closed_call/attention/vmap(BTNH,BSNH->BNTS)/dot_general", "attention"),
        ("jit(step)/transpose(jvp(loss))/blocks/checkpoint/rematted_computation/mlp/mul", "second forward of remat"),
        ("jit(step)/jvp(loss)/blocks/while/body/jit(dynamic_index_in_dim)/dynamic_slice", "blocks, besides"),
        ("jit(step)/jvp(loss)/jit(norm)/sub", "loss"),  # a function of that name is no scope
        ("jit(step)/threefry2x32", "rest"),
        ("", "rest"),
    ],
)  # fmt: skip
def test_parts_go_by_the_innermost_scope(op_name, part):
    assert part_named(op_name) == part


def test_a_chip_without_a_clock_has_cycles_and_no_time():
    assert {name for name, chip in CHIPS.items() if chip.hertz} == {"TPU v4", "TPU v5 lite", "TPU v5"}
    assert [round(CHIPS[name].hertz / 1e9, 2) for name in ("TPU v4", "TPU v5 lite", "TPU v5")] == [1.05, 1.5, 1.75]
    trillium = CHIPS["TPU v6 lite"]
    found = estimate(Program(LOOPED), trillium)
    assert found.seconds is None
    assert found.profile(trillium)["MLP"]["share_of_peak"] is None
    assert sum(part["cycles"] for part in found.profile(trillium).values()) == 635


def test_a_plan_promises_the_longer_of_the_two(small):
    config = small("scratch")
    plan = make_plan(config, 10, jax.devices()[:1])
    assert plan.clock is None  # CPUs have no such figures
    plan = plan._replace(seconds={"compute": 1e-9}, clock=estimate(Program(EXCHANGED), V5E))
    rows = report(plan, config, 1000, V5E)
    assert rows["step_seconds"] == rows["clock"]["seconds"] > 50e-9
    assert rows["images_per_second"] == config.batch / rows["step_seconds"]
    assert rows["schedule"]["hours"] == rows["schedule"]["steps"] * rows["step_seconds"] / 3600
    assert plan._replace(seconds={"memory": 2.0}).step_seconds == 2.0
    without = plan.clock._replace(hertz=None)
    assert plan._replace(clock=without).step_seconds == 1e-9


def test_the_figure_has_a_bar_a_part():
    parts = estimate(Program(LOOPED), V5E).profile(V5E)
    (axis,) = draw(parts, "by hand").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "MLP",
        "copies",
        "head",
        "optimiser",
        "casts",
        "fills with zeros",
    ]
    assert [bar.get_width() for bar in axis.patches] == [part["cycles"] / 1e6 for part in parts.values()]


@pytest.mark.parametrize("words", [["--search", "--profile"], ["--out=profile.pdf"]])
def test_a_profile_is_of_one_plan_and_a_picture(words, capsys):
    assert cli.main(["plan", "--config=digits.py:scratch", "--local", *words]) == 2
    assert "Expected" in capsys.readouterr().err


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vit_scratch.py:s16", "mae.py:b16"])
def test_parts_of_a_real_compilation_are_all_of_it(recipe, tmp_path):
    changes = ["batch=16", "model.hidden_size=128", "model.transformer.num_layers=2", "model.transformer.num_heads=2",
               "model.transformer.mlp_dim=512", "remat=full"]  # fmt: skip
    changes += ["mae.decoder.num_layers=1"] if recipe.startswith("mae") else []
    status, rows, words = plan_in_a_process(
        f"--config={recipe}", "--topology=v5e:1x1", "--mesh=data=1,fsdp=1", f"--out={tmp_path}/profile.png", "--set", *changes
    )  # fmt: skip
    assert status == 0, words
    parts, clock = rows["profile"], rows["clock"]
    assert sum(part["cycles"] for part in parts.values()) == clock["cycles"] > 0
    assert sum(part["flops"] for part in parts.values()) == rows["compiled_flops"]
    assert clock["seconds"] == pytest.approx(clock["cycles"] / 1.5e9, rel=0.01)
    assert {"patches", "norms", "qkv", "attention", "attention's output", "MLP", "head", "loss", "optimiser",
            "second forward of remat"} <= set(parts)  # fmt: skip
    assert ("masks" in parts) == recipe.startswith("mae")
    assert parts["rest"]["share"] < 0.05
    assert (tmp_path / "profile.png").stat().st_size > 5000
