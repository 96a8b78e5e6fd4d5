"""The HTML report of a conversation or a batch."""
