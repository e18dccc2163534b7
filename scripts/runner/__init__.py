"""What the scripts share; standard library only up to the moment when .venv/ exists."""
