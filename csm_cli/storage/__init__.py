"""Atomic files, locks and the user's folders."""
