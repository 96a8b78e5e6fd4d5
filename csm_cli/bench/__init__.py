"""Measurements of what is claimed: how well a voice speaks."""
