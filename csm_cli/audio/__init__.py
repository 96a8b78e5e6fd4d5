"""Sound files, loudness, mixing, subtitles and playback."""

AUDIO_FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16")}
"""Output formats by their suffix: libsndfile's format and subtype. Everything that lists formats reads this."""
