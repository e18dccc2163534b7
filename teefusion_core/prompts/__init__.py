"""Prompts as texts or embeddings."""
