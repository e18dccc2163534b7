"""Run the shipped workflows of the embedded model, keep their pictures as thumbnails.

python3 scripts/thumbnails.py                   all that run without weights
python3 scripts/thumbnails.py 04 Z-Sampling     only these
"""

import argparse

from runner.setup import enter_environment, set_up
from runner.stop import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", nargs="*", help="names without .json (default: all)")
    chosen = parser.parse_args().workflow
    comfyui = set_up()
    enter_environment()

    from runner.thumbnails import make_thumbnails

    make_thumbnails(comfyui, chosen)
    return 0


if __name__ == "__main__":
    run(main)
