"""Benchmarks; each module has measure() -> numbers for JSON, and table(numbers) -> rows for the screen."""
