"""Compression: weights removed after training."""

from gossamer.compression.base import Decision, Layer, PruningMethod, ScoreMethod
from gossamer.compression.batch_norm import reestimate_batch_norm
from gossamer.compression.dsnot import DSnoT
from gossamer.compression.group_pruning import GroupPruner
from gossamer.compression.input_statistics import InputStatistics
from gossamer.compression.magnitude import Magnitude
from gossamer.compression.pattern_search import GroupChoice, search_groups
from gossamer.compression.pruning import LayerReport, PruneReport, prune
from gossamer.compression.rearrangement import RearrangeReport, channel_rearrange
from gossamer.compression.saving import check_directory, load, pack_linears, save
from gossamer.compression.sparsegpt import SparseGPT
from gossamer.compression.wanda import Wanda
from gossamer.kernels import Refinement, dsnot_refine

__all__ = [
    "DSnoT",
    "Decision",
    "GroupChoice",
    "GroupPruner",
    "InputStatistics",
    "Layer",
    "LayerReport",
    "Magnitude",
    "PruneReport",
    "PruningMethod",
    "RearrangeReport",
    "Refinement",
    "ScoreMethod",
    "SparseGPT",
    "Wanda",
    "channel_rearrange",
    "check_directory",
    "dsnot_refine",
    "load",
    "pack_linears",
    "prune",
    "reestimate_batch_norm",
    "save",
    "search_groups",
]
