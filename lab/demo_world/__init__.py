"""How the demo model was made: a world of coloured shapes that an exact judge can read."""
