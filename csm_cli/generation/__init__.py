"""From conversations to audio: prompts, turns, takes, context window, verification and incremental runs."""
