"""Every limit on what a client may send or keep, and why it is what it is."""

from __future__ import annotations

MAX_BODY_BYTES = 48_000_000  # of a request: a minute of 48 kHz stereo in 24 bits has 17 MB, as base64 23 MB
MAX_INPUT_CHARS = 20_000  # of one text: half an hour of speech; OpenAI's own limit is 4096
MAX_CLIP_SECONDS = 60.0  # of a reference or context clip: 750 positions of the context window
MAX_CONTEXT_CLIPS = 16  # more would not fit into the context window
MAX_IGNORED_NAMES = 8  # unknown fields that are named in a header
MAX_CLIPS_CACHED = 64  # codes of uploaded clips, by digest
MAX_VOICES = 1000  # they are files on this machine's disk
MAX_SPEAKERS = 32  # of a conversation; more voices would not fit into the context window
MAX_TITLE_CHARS = 200
MAX_NAME_CHARS = 80  # of a speaker
MAX_TURNS = 1000  # of a conversation: a turn is tokenized again for each later one
MAX_TAKES = 32  # of a turn
MAX_CONVERSATION_SECONDS = 3600  # of audio in one conversation, all takes together; a second has 96 kB
MAX_STORED_SECONDS = 14_400  # of audio in all conversations: 1.4 GB
MIN_IDLE_SECONDS = 300  # a conversation used within this time is not dropped for another
MAX_SOCKETS = 256  # open text streams; each holds the codes of its last sentences
MAX_SOCKET_MESSAGE_BYTES = 8_000_000  # of one message: a clip of a minute in 16 bits at 24 kHz has 3.9 MB as base64
MAX_PAST_SENTENCES = 64  # of a text stream that are prompted again; more do not fit into the context window
SOCKET_IDLE_SECONDS = 60  # without a message while nothing is spoken
