"""Recorded speech as training data: datasets of several forms read, checked, encoded once and kept as codes."""
