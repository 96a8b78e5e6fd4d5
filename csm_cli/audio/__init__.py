"""Sound files, loudness, mixing, subtitles and playback."""
