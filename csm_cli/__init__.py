"""csm-cli: Sesame's Conversational Speech Model from the command line."""

__version__ = "0.1.0"
