"""The speech model: backbone and depth decoder over explicit KV caches. Its config is read without torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csm_cli.models.csm.kv_cache import AttentionMetadata, DecodeSlots, KVCache, KVCacheView, PrefillSlots
    from csm_cli.models.csm.model import CsmModel

__all__ = ["AttentionMetadata", "CsmModel", "DecodeSlots", "KVCache", "KVCacheView", "PrefillSlots"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from csm_cli.models.csm import kv_cache, model

    return getattr(model if name == "CsmModel" else kv_cache, name)
