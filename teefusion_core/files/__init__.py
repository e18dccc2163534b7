"""The files of this pack."""
