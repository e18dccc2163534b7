"""Make files of the published layouts with random weights: python -m lab.real_size FOLDER [--depth N]."""

import argparse
from pathlib import Path

from lab.demo_world.host import use_comfy
from lab.real_size.files import CLIPS, T5, Files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder of models of a ComfyUI")
    parser.add_argument("--depth", type=int, help="depth of the networks; the published one if it is left out")
    parser.add_argument("--encoders", nargs="+", choices=(*CLIPS, T5), default=(*CLIPS, T5))
    given = parser.parse_args()
    use_comfy()
    Files(given.models, depth=given.depth, encoders=given.encoders).all()


if __name__ == "__main__":
    main()
