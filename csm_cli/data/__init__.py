"""Recorded speech as training data: datasets in several formats are read, checked and encoded once to codes."""
