"""Image evaluation: metrics, scores, grids, reports."""
