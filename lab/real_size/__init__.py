"""Models of the published sizes, with random weights."""
