"""Saved voices: a clip of speech under a name, with its transcript, licence and source. A voice is a context turn."""
