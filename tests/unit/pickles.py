"""A pickle that shows when somebody opens it."""

import pickle


def trap(path):
    """Return bytes that make a file at a path when they are unpickled."""
    return pickle.dumps(_Trap(path))


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (_spring, (str(self.path),))


def _spring(path):
    open(path, "w").close()
