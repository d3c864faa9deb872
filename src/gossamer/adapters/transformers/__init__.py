"""Gossamer attention inside transformers models."""

try:
    import transformers  # noqa: F401
except ImportError as missing:
    raise ImportError(
        "gossamer attention for language models needs transformers: pip install gossamer[llm]"
    ) from missing

from gossamer.adapters.transformers.attachment import Attachment
from gossamer.adapters.transformers.cache import KVCache, KVLayer

__all__ = ["Attachment", "KVCache", "KVLayer"]
