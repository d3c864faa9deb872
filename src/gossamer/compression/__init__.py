"""Compression: weights removed after training."""

from gossamer.compression.rearrangement import RearrangeReport, channel_rearrange

__all__ = ["RearrangeReport", "channel_rearrange"]
