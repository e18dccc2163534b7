"""What the scripts share; only the standard library until .venv/ exists."""

import sys

if sys.version_info < (3, 10):  # before any import that an older Python cannot read
    sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}; run it with a newer python3.")
