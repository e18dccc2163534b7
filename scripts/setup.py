"""Make everything that the other scripts need."""

import time

from runner.setup import set_up
from runner.stop import run, say


def main() -> int:
    started = time.monotonic()
    comfyui = set_up()
    say(f"ready in {time.monotonic() - started:.1f} s, ComfyUI in {comfyui}")
    return 0


if __name__ == "__main__":
    run(main)
