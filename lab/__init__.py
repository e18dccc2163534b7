"""The laboratory: how the demo model was made, what the pack claims and how it is measured. Not shipped."""
