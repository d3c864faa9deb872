"""Compression: weights removed after training."""

from gossamer.compression.batch_norm import reestimate_batch_norm
from gossamer.compression.group_pruning import GroupPruner
from gossamer.compression.pattern_search import GroupChoice, search_groups
from gossamer.compression.rearrangement import RearrangeReport, channel_rearrange

__all__ = [
    "GroupChoice",
    "GroupPruner",
    "RearrangeReport",
    "channel_rearrange",
    "reestimate_batch_norm",
    "search_groups",
]
