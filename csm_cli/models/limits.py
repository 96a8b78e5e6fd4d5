"""Every limit on what a checkpoint's config may ask for, by its key there, and why.

A config is read before anything is enumerated or allocated from it. Each limit is several times what the largest
published models of its kind have; sizes beyond it are mistakes or attacks.
"""

from __future__ import annotations

CSM_LIMITS = {
    "num_hidden_layers": 512,  # Llama 405B has 126; each layer is nine names to check
    "hidden_size": 65_536,  # Llama 405B has 16,384
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 17,  # csm-1b has 2048; tables of positions and KV caches grow with it
    "original_max_position_embeddings": 1 << 20,
    "num_codebooks": 256,  # Mimi has 32
    "vocab_size": 1 << 15,  # codes are stored in 16 bits, with a sign
    "text_vocab_size": 1 << 22,  # the largest tokenizers have 256,000
}
MIMI_LIMITS = {
    "sampling_rate": 384_000,
    "num_filters": 4096,
    "num_residual_layers": 8,
    "kernel_size": 1024,
    "last_kernel_size": 1024,
    "residual_kernel_size": 1024,
    "dilation_growth_rate": 8,  # to the power of the residual layers
    "compress": 64,
    "upsample_groups": 65_536,
    "codebook_size": 1 << 15,
    "codebook_dim": 16_384,
    "num_quantizers": 256,
    "num_semantic_quantizers": 256,
    "hidden_size": 65_536,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "intermediate_size": 1 << 20,
    "sliding_window": 1 << 16,
}
MAX_RATIOS = 8  # up-sampling stages; the channels double in each
MAX_RATIO = 64
MAX_MODULE_PATTERN = 200  # characters of a pattern in an adapter
MAX_MODULE_PATTERNS = 2000  # an adapter of every layer of csm-1b has about 150 modules
