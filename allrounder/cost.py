"""Plan + geometry -> Cost. Pure arithmetic by one convention; knows nothing of torch or models.

Two FLOPs per multiply-add over the decoder's matrices; attention is 4 x queries x keys x width per
layer, not halved for causality; the output head counts for the rows whose logits are used. The
vision encoder runs whole and is not counted.
"""

from __future__ import annotations

from dataclasses import replace

from allrounder.core import Cost, ModelGeometry, Plan, PromptShape


def row_flops(geometry: ModelGeometry) -> int:
    """FLOPs of one row through the matrices of one decoder layer, attention scores excluded."""
    heads = geometry.num_heads * geometry.head_dim
    kv_heads = geometry.num_kv_heads * geometry.head_dim
    attention = geometry.width * (2 * heads + 2 * kv_heads)
    return 2 * (attention + 3 * geometry.width * geometry.mlp_width)


def attention_flops(geometry: ModelGeometry, *, num_queries: int, num_keys: int) -> int:
    return 4 * num_queries * num_keys * geometry.num_heads * geometry.head_dim


def head_flops(geometry: ModelGeometry) -> int:
    return 2 * geometry.width * geometry.vocab_size


def prefill_flops(geometry: ModelGeometry, shape: PromptShape, plan: Plan) -> int:
    """The prompt through the layers that `plan` runs, plus one row of logits."""
    total = head_flops(geometry)
    for visual, num_layers in plan.spans():
        rows = shape.num_text + visual
        attention = attention_flops(geometry, num_queries=rows, num_keys=rows)
        total += num_layers * (rows * row_flops(geometry) + attention)
    return total


def decode_flops(
    geometry: ModelGeometry, shape: PromptShape, plan: Plan, *, num_generated: int
) -> int:
    """All steps after prefill: the first generated token comes from the prompt's own logits."""
    steps = max(num_generated - 1, 0)
    total = steps * head_flops(geometry)
    for visual, num_layers in plan.spans():
        keys = steps * (shape.num_text + visual) + steps * (steps + 1) // 2
        attention = attention_flops(geometry, num_queries=1, num_keys=keys)
        total += num_layers * (steps * row_flops(geometry) + attention)
    return total


def kv_bytes_per_row(geometry: ModelGeometry) -> int:
    """Bytes of one row's key and value in one layer."""
    return 2 * geometry.num_kv_heads * geometry.head_dim * geometry.bytes_per_value


def kv_bytes(geometry: ModelGeometry, shape: PromptShape, plan: Plan, *, num_generated: int) -> int:
    """KV held at the end: (kept layer, surviving row) pairs only."""
    added = max(num_generated - 1, 0)
    rows = sum(count * (shape.num_text + visual + added) for visual, count in plan.spans())
    return rows * kv_bytes_per_row(geometry)


def cost_of(
    geometry: ModelGeometry, shape: PromptShape, plan: Plan, *, num_generated: int = 1
) -> Cost:
    """Cost of `plan` on a prompt of `shape` that generates `num_generated` tokens."""
    dense = Plan.dense(num_layers=geometry.num_layers, num_visual=shape.num_visual)
    all_layers = replace(plan, runs=dense.runs)

    def total(of: Plan) -> int:
        return prefill_flops(geometry, shape, of) + decode_flops(
            geometry, shape, of, num_generated=num_generated
        )

    return Cost(
        dense_prefill=prefill_flops(geometry, shape, dense),
        dense_decode=decode_flops(geometry, shape, dense, num_generated=num_generated),
        executed_prefill=prefill_flops(geometry, shape, plan),
        executed_decode=decode_flops(geometry, shape, plan, num_generated=num_generated),
        token_plan=total(all_layers),
        router=plan.choice_flops,
        kv_bytes=kv_bytes(geometry, shape, plan, num_generated=num_generated),
        dense_kv_bytes=kv_bytes(geometry, shape, dense, num_generated=num_generated),
        num_kept=plan.num_kept,
        num_layers_run=plan.num_layers_run,
        loyalty=plan.loyalty,
    )
