"""Every limit on sound files, and why."""

from __future__ import annotations

MAX_SECONDS = 600.0  # read as one clip: far more than fits into a context window
MAX_SAMPLES = 64_000_000  # read at once: 600 s at 96 kHz; as mono float32 they take 256 MB
BLOCK_SAMPLES = 1 << 18  # decoded at a time, of all channels together
MAX_HEADER_BYTES = 16 << 20  # before the samples of a file whose length is filled in: pictures in tags have a few MB
MAX_CONVERTED_BYTES = 2 << 30  # of the 16-bit samples that libav or ffmpeg decode: 3 hours of stereo at 48 kHz
MAX_CONVERT_SECONDS = 600.0  # that ffmpeg may take for it
MAX_CODES_BYTES = 32 << 20  # of a file of codes: an hour of 32 codebooks as 64-bit integers has 11 MB
MAX_LEVEL = 1e6  # of a sample, where full scale is 1: 16-bit integers saved as floats have 32768, beyond is no sound
MAX_TAG_BYTES = (
    2000  # of a title or comment: libsndfile drops the tags of a WAV beyond 8 KB, and corrupts it beyond 50 KB
)
