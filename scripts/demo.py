"""Show a guided teacher beside its one-pass student, from nothing but a Python.

python3 scripts/demo.py            run the shipped workflow, make output/demo/teacher_vs_student.png, print a table
python3 scripts/demo.py --serve    start ComfyUI with this pack instead, to be opened in a browser
"""

import argparse
from pathlib import Path

from runner.places import OUTPUT
from runner.setup import enter_environment, set_up
from runner.stop import run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="how many prompts (default 8)")
    parser.add_argument("--out", type=Path, default=OUTPUT / "demo", help="folder for the picture")
    parser.add_argument("--serve", action="store_true", help="start ComfyUI only, until Ctrl-C")
    parser.add_argument("--port", type=int, help="port of ComfyUI (default: any free one; 8188 with --serve)")
    chosen = parser.parse_args()
    if chosen.prompts < 1:
        parser.error("--prompts must be at least 1")
    return chosen


def main() -> int:
    chosen = arguments()
    comfyui = set_up()
    enter_environment()

    if chosen.serve:
        from runner.serving import serve

        serve(comfyui, chosen.port)
    else:
        from runner.comparison import compare

        compare(comfyui, chosen.prompts, chosen.out.resolve(), port=chosen.port)
    return 0


if __name__ == "__main__":
    run(main)
