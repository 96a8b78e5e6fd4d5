"""Every limit on what a client may send or keep, and why it is what it is."""

from __future__ import annotations

MAX_BODY_BYTES = 48_000_000  # of a request: a minute of 48 kHz stereo in 24 bits has 17 MB, as base64 23 MB
MAX_INPUT_CHARS = 20_000  # of one text: half an hour of speech; OpenAI's own limit is 4096
MAX_CLIP_SECONDS = 60.0  # of a reference or context clip: 750 positions of the context window
MAX_CONTEXT_CLIPS = 16  # more would not fit into the context window
MAX_IGNORED_NAMES = 8  # unknown fields that are named in a header
MAX_CLIPS_CACHED = 64  # codes of uploaded clips, by digest
MAX_VOICES = 1000  # they are files on this machine's disk
