"""Every limit on what a script, a manifest or another text may hold, and why it is what it is.

Each is far above what people write, and low enough that a file of that size is read or refused in seconds.
"""

from __future__ import annotations

MAX_LINE_BYTES = 4_000_000  # of a JSONL or CSV line: a dialogue of a day; bounds memory where lines are read one by one
MAX_TEXT_FILE_BYTES = 64_000_000  # of a text that is read as a whole: about 60 novels
MAX_PIPE_BYTES = 1 << 32  # of a pipe that is copied to a temporary file
MAX_TRANSCRIPT_BYTES = 1_000_000  # of the text beside a recording, which may have 100,000 characters of 4 bytes
MAX_DEPTH = 32  # levels of YAML or JSON; a script has 6
MAX_VALUES = 100_000  # of one script: each has a location in memory; larger dialogues are split or manifests
MAX_YAML_CHARS = 4_000_000  # about 10 s of parsing
MAX_TEXT_CHARS = 100_000  # of one turn: two hours of speech
MAX_SPEAKERS = 1000  # numbers of speakers have up to three digits
MAX_COLUMNS = 1000  # of a table; every cell of every row is checked
MAX_FIELDS_EXPLAINED = 50  # unknown names of one source that get a "did you mean"; each costs milliseconds
MAX_NAME_CHARS = 100  # of a name that is compared with others for "did you mean"
MAX_PATH_CHARS = 4096  # of the file's part of FILE=TEXT; PATH_MAX of Linux
MAX_CACHED_HEADERS = 4096  # headers of sound files that stay in memory
