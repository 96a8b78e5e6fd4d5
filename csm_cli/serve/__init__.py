"""`csm serve`: OpenAI's speech endpoint over HTTP."""
