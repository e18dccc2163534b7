"""The flow conventions of the method, written out for tests: x = sigma * noise + (1 - sigma) * latent."""


def denoised_of(velocity, x, sigma):
    """Return x - sigma * velocity; sigma is a number or one per row."""
    return x - (sigma if sigma.ndim == 0 else sigma.reshape(-1, *([1] * (x.ndim - 1)))) * velocity


def shifted(sigma, shift):
    """Return noise levels after the schedule shift of SD3."""
    return shift * sigma / (1 + (shift - 1) * sigma)
