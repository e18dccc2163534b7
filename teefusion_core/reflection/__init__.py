"""Reflection sampling."""
