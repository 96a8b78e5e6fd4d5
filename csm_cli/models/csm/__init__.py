"""The speech model: backbone and depth decoder over explicit KV caches, and the tables between them."""

from csm_cli.models.csm.kv_cache import AttentionMetadata, DecodeSlots, KVCache, KVCacheView, PrefillSlots
from csm_cli.models.csm.model import CsmModel

__all__ = ["AttentionMetadata", "CsmModel", "DecodeSlots", "KVCache", "KVCacheView", "PrefillSlots"]
