"""The laboratory: the training of the demo model and the benchmarks behind the claims of the pack. Not shipped."""
