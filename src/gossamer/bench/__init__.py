"""Measuring: paired timings, the machine they were taken on, and the files that keep them."""

from gossamer.bench.machine import Machine, describe
from gossamer.bench.store import ResultStore, load_results
from gossamer.bench.timing import Samples, interleaved, peak_rss, ratio
from gossamer.files import load_json, save_json, save_text

__all__ = [
    "Machine",
    "ResultStore",
    "Samples",
    "describe",
    "interleaved",
    "load_json",
    "load_results",
    "peak_rss",
    "ratio",
    "save_json",
    "save_text",
]
