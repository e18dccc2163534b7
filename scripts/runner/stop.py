"""A failure that ends in a message of one sentence."""

import errno
import os
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 130
"""Exit code by which shells know that a person pressed Ctrl-C."""


class Stop(Exception):
    """Something the user can act on: what happened, then what to do."""


def say(line: str) -> None:
    """Print a progress line at once, also into a pipe."""
    print(line, flush=True)


def disk_full(where: object) -> Stop:
    return Stop(f"The disk that holds {where} is full; free some space, then run the same command again.")


def _terminated(signum: int, frame: object) -> None:
    # as an exception, so that a running ComfyUI is stopped on the way out
    sys.exit(128 + signum)


def run(main: Callable[[], int]) -> None:
    """Run a script's main function, then exit; a Stop becomes one sentence on stderr."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = main()
    except Stop as stop:
        print(f"\n{stop}", file=sys.stderr, flush=True)
        code = 1
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to go on.", file=sys.stderr, flush=True)
        code = INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) has gone: nothing is left to say, not even by the interpreter on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"\n{disk_full(error.filename or 'this folder')}", file=sys.stderr, flush=True)
        code = 1
    sys.exit(code)
