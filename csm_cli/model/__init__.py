"""The speech model: backbone and depth decoder over explicit KV caches, and the tables between them."""

from csm_cli.model.cache import KvCache, Place, Scatter, Span, View
from csm_cli.model.csm import CsmModel

__all__ = ["CsmModel", "KvCache", "Place", "Scatter", "Span", "View"]
