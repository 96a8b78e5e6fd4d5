"""Training of the bundled voice, from generated text to an exported checkpoint."""
