"""How a student is trained: what it learns from, what of it learns, the loop, the run on disk."""
