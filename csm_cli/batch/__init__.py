"""A manifest to files, across as many runs as needed: no item is done twice. No torch here."""
