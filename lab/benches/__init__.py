"""Benchmarks: a module has measure() -> numbers for JSON, table(numbers) -> rows for the screen."""
