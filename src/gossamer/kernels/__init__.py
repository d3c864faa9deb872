"""Kernels: one public function an operation, each with a reference, a C++ and a Triton path."""

from gossamer.kernels.activation_sparse_matmul import activation_sparse_matmul
from gossamer.kernels.backend import instruction_set, instruction_sets
from gossamer.kernels.balanced_sets import balanced_sets
from gossamer.kernels.block_sparse_attention import block_sparse_attention, block_sparse_state
from gossamer.kernels.block_spmm import block_spmm
from gossamer.kernels.delta_conv import DeltaConv, HeldImages, delta_conv
from gossamer.kernels.depthwise_conv import depthwise_conv
from gossamer.kernels.gathered_attention import gathered_attention
from gossamer.kernels.int8_spmm import int8_spmm
from gossamer.kernels.int8_weight import Affine, Int8Weight, pack_int8
from gossamer.kernels.lossless_gemv import LosslessWeight, lossless_gemv, pack_lossless
from gossamer.kernels.mask_swaps import Refinement, dsnot_refine
from gossamer.kernels.nm_matmul import nm_matmul
from gossamer.kernels.packed import PackedWeight, pack
from gossamer.kernels.paged_dot import paged_dot, soft_votes, top_indices
from gossamer.kernels.random_walks import WalkGraph, Walks, random_walks, trace_walks
from gossamer.kernels.rotate import rotate
from gossamer.kernels.sddmm import sddmm
from gossamer.kernels.set_attention import set_attention
from gossamer.kernels.sparse_gemv import sparse_gemv
from gossamer.kernels.sparse_linear import sparse_linear
from gossamer.kernels.sparse_weight import SparsePattern, SparseWeight
from gossamer.kernels.sparsegpt_sweep import Sweep, sparsegpt_sweep
from gossamer.kernels.spmm import spmm
from gossamer.kernels.state import AttentionOutput, AttentionState
from gossamer.kernels.stripe_search import stripe_search
from gossamer.kernels.token_vote import Vote, VoteMemory, vote_step
from gossamer.kernels.total_variation import (
    finite_differences,
    tv_adjoint,
    tv_dual_ascent,
)
from gossamer.kernels.tree_search import TreeSearch, tree_search

__all__ = [
    "Affine",
    "AttentionOutput",
    "AttentionState",
    "DeltaConv",
    "HeldImages",
    "Int8Weight",
    "LosslessWeight",
    "PackedWeight",
    "Refinement",
    "SparsePattern",
    "SparseWeight",
    "Sweep",
    "TreeSearch",
    "Vote",
    "VoteMemory",
    "WalkGraph",
    "Walks",
    "activation_sparse_matmul",
    "balanced_sets",
    "block_sparse_attention",
    "block_sparse_state",
    "block_spmm",
    "delta_conv",
    "depthwise_conv",
    "dsnot_refine",
    "finite_differences",
    "gathered_attention",
    "instruction_set",
    "instruction_sets",
    "int8_spmm",
    "lossless_gemv",
    "nm_matmul",
    "pack",
    "pack_int8",
    "pack_lossless",
    "paged_dot",
    "random_walks",
    "rotate",
    "sddmm",
    "set_attention",
    "soft_votes",
    "sparse_gemv",
    "sparse_linear",
    "sparsegpt_sweep",
    "spmm",
    "stripe_search",
    "top_indices",
    "trace_walks",
    "tree_search",
    "tv_adjoint",
    "tv_dual_ascent",
    "vote_step",
]
