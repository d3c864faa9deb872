"""Testing kit: inputs, float64 oracles and error bounds, for gossamer's kernels and for yours.

A kernel test reads: draw inputs, run the kernel, ask the oracle, check the bound.

Examples
--------
>>> from gossamer.kernels import block_sparse_attention
>>> query, key, value = attention_inputs(AttentionShape(1, 4, 2, 100, 100, 32))
>>> actual = block_sparse_attention(query, key, value, return_lse=True)
>>> exact = dense_attention(query, key, value, visible_keys(None, query, key))
>>> check_attention(actual, exact, value) <= 1.0
True
"""

from gossamer.testing.bounds import budget, check_attention, check_close, check_key_lists
from gossamer.testing.inputs import (
    LAYOUTS,
    SHAPES,
    VALUES,
    AttentionShape,
    attention_inputs,
    random_mask,
    rotary_tables,
)
from gossamer.testing.oracles import (
    TreeOracle,
    dense_attention,
    ranked_attention,
    tree_search,
    visible_keys,
)
from gossamer.testing.products import check_product

__all__ = [
    "LAYOUTS",
    "SHAPES",
    "VALUES",
    "AttentionShape",
    "TreeOracle",
    "attention_inputs",
    "budget",
    "check_attention",
    "check_close",
    "check_key_lists",
    "check_product",
    "dense_attention",
    "random_mask",
    "ranked_attention",
    "rotary_tables",
    "tree_search",
    "visible_keys",
]
