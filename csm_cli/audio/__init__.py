"""Audio files, loudness, mixing, subtitles and playback."""
