"""How pictures are judged: prompt sets, metrics, scores, grids."""
