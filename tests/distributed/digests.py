"""Sets of tensors compared by a line of text."""

import hashlib


def digest_of(tensors):
    """Equal for tensors that are equal to the bit."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()
