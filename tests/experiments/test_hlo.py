"""Counts of compiled programs, by hand on small ones, and on what the compiler gives here."""

import jax
import jax.numpy as jnp

from experiments.benchmarks import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1, 2}: (3, {}, must-alias) }, entry={}

%fused (param_0: bf16[8,4]) -> bf16[8,4] {
  %param_0 = bf16[8,4]{1,0} parameter(0)
  ROOT %scatter.1 = bf16[8,4096]{1,0} scatter(%param_0, %param_0, %param_0), to_apply=%add
}

ENTRY %main (a: bf16[8,4], b: f32[4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %fusion = bf16[8,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused
  %conv = (bf16[8,2]{1,0}, u8[1000]{0}) custom-call(%fusion, %a), custom_call_target="__cudnn$convForward"
  %part = bf16[8,2]{1,0} get-tuple-element(%conv), index=0
  %wide = (f32[8,2]{1,0}, u8[0]{0}) custom-call(%b, %a), custom_call_target="__cudnn$convBackwardFilter"
  ROOT %copy = bf16[8,2]{0,1} copy(%part)
}
"""


def test_counts_by_hand():
    counts = hlo.count(PROGRAM, images=2)
    # fusion 64 + 64 + 16; forward 32 + 64 + 64; gradient 64 + 16 + 64; copy 32 + 32
    assert counts["kernels"] == 4 and counts["megabytes_an_image"] == (144 + 160 + 144 + 64) / 2 / 1e6
    assert counts["convolutions"] == 2 and counts["float32_convolutions"] == 1
    assert counts["donated"] == 2
    assert counts["activation_scatters"] == 1  # 8 x 4096 of two pictures
    assert hlo.count(PROGRAM, images=2, activation_elements=20_000)["activation_scatters"] == 0
    assert counts["by_kind"]["copy"] == {"kernels": 1, "megabytes": round(64 / 1e6, 3)}


def test_of_an_operand_that_is_only_sliced_the_slices_count():
    body = """\
%sliced (param_0.1: bf16[8,100], param_1.1: f32[4]) -> f32[4] {
  %param_0.1 = bf16[8,100]{1,0} parameter(0)
  %wide.1 = f32[8,100]{1,0} convert(%param_0.1)
  %slice.1 = f32[1,4]{1,0} slice(%wide.1), slice={[0:1], [0:4]}
  %param_1.1 = f32[4]{0} parameter(1)
  ROOT %add.1 = f32[4]{0} add(%slice.1, %param_1.1)
}

ENTRY %main (a: bf16[8,100], b: f32[4]) -> f32[4] {
  %a = bf16[8,100]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  ROOT %fusion = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%sliced
}
"""
    assert hlo.count("HloModule m\n\n" + body, images=1)["megabytes_an_image"] == (16 + 16 + 16) / 1e6


def test_sizes_of_types():
    assert hlo.num_bytes("(bf16[2,3]{1,0}, f32[], pred[7]{0})") == 12 + 4 + 7


def test_a_program_of_this_machine():
    step = jax.jit(lambda state, x: (state + jnp.sum(x), x * 2), donate_argnums=0)
    compiled = step.lower(jnp.zeros(()), jnp.ones((4, 3))).compile()
    counts = hlo.count(compiled.as_text(), images=4)
    assert counts["kernels"] >= 1 and counts["donated"] == 1 and counts["convolutions"] == 0
