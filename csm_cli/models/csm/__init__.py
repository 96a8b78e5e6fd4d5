"""The speech model: backbone and depth decoder over explicit KV caches. `config` does not import torch."""
