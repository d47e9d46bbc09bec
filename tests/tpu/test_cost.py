"""What a program with loops does, against the same program without."""

import jax
import jax.numpy as jnp
import pytest

from relu_sparsity.tpu.cost import _Program, program_cost

TURNS = 7
ROWS, WIDTH = 64, 96


def compile_layers(*, unroll, inner=1):
    def layer(x, kernel):
        def again(x, _):
            return jnp.maximum(x @ kernel, 0), None

        return jax.lax.scan(again, x, length=inner, unroll=unroll)[0], None

    def loss(kernels, x):
        return jax.lax.scan(layer, x, kernels, unroll=unroll)[0].sum()

    kernels = jax.ShapeDtypeStruct((TURNS, WIDTH, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(kernels, x).compile()


@pytest.mark.parametrize("inner", [1, 3], ids=["one loop", "a loop in a loop"])
def test_a_loop_counts_as_the_same_program_without_it(inner):
    looped, flat = (compile_layers(unroll=unroll, inner=inner) for unroll in (1, True))
    assert " while(" in looped.as_text()
    assert " while(" not in flat.as_text()
    flops = flat.cost_analysis()["flops"]
    assert program_cost(looped).flops == pytest.approx(flops, rel=0.02)
    assert looped.cost_analysis()["flops"] < flops / 3, "XLA counts a body once"


def test_bytes_of_a_loop_are_those_of_the_same_program_without_it():
    def compile_products(unroll):
        def repeat(kernel, x):
            return jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=TURNS, unroll=unroll)[0]

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(512, 512), (4, 512)]]
        return jax.jit(repeat).lower(*shapes).compile()

    looped, flat = map(compile_products, (1, True))
    assert " while(" in looped.as_text()
    expected = flat.cost_analysis()["bytes accessed"]
    assert expected == pytest.approx(TURNS * 4 * 512**2, rel=0.05), "the kernel, in each turn"
    assert program_cost(looped).hbm_bytes == pytest.approx(expected, rel=0.05)


def test_flops_are_those_of_the_products():
    flops = program_cost(compile_layers(unroll=1)).flops
    assert flops == pytest.approx(3 * TURNS * 2 * ROWS * WIDTH**2, rel=0.05)


def test_without_a_loop_it_is_the_count_of_xla():
    compiled = compile_layers(unroll=True)
    expected = compiled.cost_analysis()
    cost = program_cost(compiled)
    assert cost == (expected["flops"], expected["bytes accessed"])


LOOP = """HloModule loop

%body (p: (s32[], f32[256])) -> (s32[], f32[256]) {
  %p = (s32[], f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[256]{0} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %doubled = f32[256]{0} add(%x, %x)
  ROOT %both = (s32[], f32[256]{0}) tuple(%next, %doubled)
}

%condition (p.1: (s32[], f32[256])) -> pred[] {
  %p.1 = (s32[], f32[256]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(256)} constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: f32[256]) -> f32[256] {
  %x.1 = f32[256]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[256]{0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[256]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[256]{0} get-tuple-element(%loop), index=1
}
"""


def test_turns_are_read_from_the_condition_where_xla_does_not_tell():
    program = _Program(LOOP)
    once = program.counted_once(program.entry)
    cost = program.cost(program.entry)
    assert cost.flops - once.flops == 4 * (256 + 1)
    assert cost.hbm_bytes - once.hbm_bytes == pytest.approx(4 * 3 * 1024, rel=0.02)


def test_a_loop_without_a_known_end_is_an_error():
    program = _Program(LOOP.replace("direction=LT", "direction=NE"))
    with pytest.raises(ValueError, match="the condition condition has no known number of turns"):
        program.cost(program.entry)


def test_a_loop_in_a_branch_is_an_error():
    program = _Program(LOOP)
    program.cost("condition")
    with pytest.raises(ValueError, match="the loops in the computation main cannot be counted"):
        program.check_all_loops_counted()


ON_CHIP = """HloModule on_chip

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %start = (f32[256]{0:S(1)}, f32[256]{0}, u32[]) copy-start(%x)
  %here = f32[256]{0:S(1)} copy-done(%start)
  %sine = f32[256]{0:S(1)} sine(%here)
  ROOT %sum = f32[256]{0} add(%sine, %x)
}
"""


def test_what_stays_on_the_chip_is_not_in_hbm():
    program = _Program(ON_CHIP)
    read_by_the_copy, read_by_the_sum, written = 1024, 1024, 1024
    cost = program.cost(program.entry)
    # XLA counts a few bytes of the copy's context, too.
    assert cost.hbm_bytes == pytest.approx(read_by_the_copy + read_by_the_sum + written, abs=32)
    assert program.counted_once(program.entry).hbm_bytes > 2 * cost.hbm_bytes
