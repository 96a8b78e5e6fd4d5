"""The published models of the CSM family: their sizes, by which a checkpoint is recognized, and how they are prompted.

Sources: github.com/SesameAILabs/csm and github.com/MisoLabsAI/MisoTTS (models.py and generator.py of each).
"""

from __future__ import annotations

from dataclasses import dataclass

PROMPT_STYLES = {"plain": "[{speaker}]{text}", "spaced": "[{speaker}] {text}"}
"""The text of a turn, by name of the style. After a space, white space at the beginning of the text is dropped."""


@dataclass(frozen=True)
class Flavor:
    """Sizes of one stack."""

    layers: int
    heads: int
    kv_heads: int
    hidden: int
    intermediate: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def shape(self) -> tuple[int, ...]:
        """What tensors show: layers, query and key dimensions, hidden and intermediate size."""
        return (self.layers, self.hidden, self.kv_heads * self.head_dim, self.hidden, self.intermediate)


FLAVORS = {
    "llama-1B": Flavor(layers=16, heads=32, kv_heads=8, hidden=2048, intermediate=8192),
    "llama-100M": Flavor(layers=4, heads=8, kv_heads=2, hidden=1024, intermediate=8192),
    "llama-8B": Flavor(layers=32, heads=32, kv_heads=8, hidden=4096, intermediate=14336),
    "llama-300M": Flavor(layers=8, heads=24, kv_heads=6, hidden=1536, intermediate=6912),
}
"""By the names in the config of Sesame's format."""


@dataclass(frozen=True)
class FamilyModel:
    """A published model. backbone, decoder: names in FLAVORS. prompt_style: a name in PROMPT_STYLES."""

    id: str
    backbone: str
    decoder: str
    prompt_style: str
    text_vocab: int = 128_256
    vocab: int = 2051
    codebooks: int = 32


FAMILY = (
    FamilyModel("sesame/csm-1b", "llama-1B", "llama-100M", "plain"),
    FamilyModel("MisoLabs/MisoTTS", "llama-8B", "llama-300M", "spaced"),
)


def family_model(backbone: Flavor, decoder: Flavor) -> FamilyModel | None:
    """The published model of these sizes."""
    sizes = (backbone, decoder)
    return next((each for each in FAMILY if (FLAVORS[each.backbone], FLAVORS[each.decoder]) == sizes), None)
