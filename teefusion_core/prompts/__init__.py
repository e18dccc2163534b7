"""Prompts, as texts or as embeddings."""
