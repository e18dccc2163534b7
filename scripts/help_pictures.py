"""Take the pictures of the help pages and of the README: real graphs in ComfyUI's own interface, and what they make.

python3 scripts/help_pictures.py                         all pictures
python3 scripts/help_pictures.py ZSampling CompareGrid   only those on the help pages of these nodes
python3 scripts/help_pictures.py README                  only that of the README
"""

import argparse

from runner.setup import enter_environment, set_up
from runner.stop import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="*", metavar="NODE", help="node ids, or README (default: all)")
    chosen = parser.parse_args().page
    comfyui = set_up()
    enter_environment()

    from runner.help_pictures import make_pictures

    make_pictures(comfyui, chosen)
    return 0


if __name__ == "__main__":
    run(main)
