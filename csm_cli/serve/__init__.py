"""`csm serve`: OpenAI's speech endpoint, conversations, text streamed in, and the studio page."""
