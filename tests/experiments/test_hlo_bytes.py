"""Bytes by part, counted by hand on a small program's text."""

from experiments.benchmarks.hlo_bytes import bytes_by_part

PROGRAM = """
%body (p: f32[9]) -> f32[9] {
  ROOT %ignored = f32[9]{0} add(%p, %p), metadata={op_name="jit(f)/UNet/ff/add"}
}

ENTRY %main (a: bf16[4,8], b: f32[8]) -> f32[4] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %one = bf16[4,8]{1,0} fusion(%a, %b), kind=kLoop, metadata={op_name="jit(f)/UNet/ff/net_0/dot"}
  %two = (f32[4]{0}, s32[]) custom-call(%one), metadata={op_name="x/attn1/cond/pallas_call"}
  %three = f32[4]{0} get-tuple-element(%two), index=0
  %four = f32[4]{0} copy-start(%three)
  ROOT %five = f32[4]{0} copy-done(%four)
}
"""


def test_operands_and_results_count_once_for_each_instruction():
    assert bytes_by_part(PROGRAM) == {
        "feed-forward": 64 + 32 + 64,
        "self-attention, kernels": 64 + (16 + 4),
        "other": 16 + 16,
    }
