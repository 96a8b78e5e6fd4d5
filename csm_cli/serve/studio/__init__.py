"""The studio: a page for the browser that uses only the public API."""
