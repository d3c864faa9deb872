"""One comparison with made-up numbers, shaped like a real one."""

from typing import Any

import pytest

FIELDS = (
    "method",
    "prefill_seconds",
    "prefill_speedup",
    "decode_ms_per_token",
    "decode_speedup",
    "kv_bytes",
    "kv_bytes_read_per_token",
    "density",
    "selection_share",
    "perplexity",
    "kl",
    "top1_agreement",
    "passkey",
    "notes",
)
KV = 360 * 2**20
ROWS = (
    ("stock", 40.0, 1.0, 180.0, 1.0, KV, KV, 1.0, 0.0, 15.0, 0.0, 1.0, 8, []),
    ("dense", 36.0, 1.11, 30.0, 6.0, KV, KV, 1.0, 0.0, 15.0, 2e-9, 1.0, 8, []),
    (
        "streaming",
        20.0,
        2.0,
        18.0,
        10.0,
        KV,
        KV // 16,
        0.118,
        0.0,
        17.1,
        0.131,
        0.861,
        2,
        ["sinks"],
    ),
    ("hip", 25.0, 1.6, 24.0, 7.5, KV, KV // 8, 0.142, 0.037, 15.3, 0.018, 0.953, 8, []),
    (
        "token-select",
        50.0,
        0.8,
        20.0,
        9.0,
        KV,
        KV // 4,
        0.294,
        0.1,
        15.15,
        0.008,
        0.972,
        8,
        ["sinks"],
    ),
    ("broken", None, None, None, None, None, None, None, None, None, None, None, None, None),
)


@pytest.fixture
def document():
    """A complete comparison of six methods, one of them unmeasured; invented numbers."""
    rows: list[dict[str, Any]] = [dict(zip(FIELDS, row, strict=True)) for row in ROWS]
    for row in rows:
        if row["passkey"] is not None:
            row["passkey"] = {"found": row["passkey"], "asked": 8}
    return {
        "schema": 1,
        "model": "example-model",
        "text": "an example document",
        "context": 8192,
        "dtype": "float32",
        "device": "cpu",
        "machine": "Example CPU, 2 cores",
        "threads": 2,
        "seed": 0,
        "versions": {"python": "3.11.0", "torch": "2.13.0"},
        "rows": rows,
        "complete": True,
        "peak_rss_bytes": 3 * 2**30,
    }
