"""A device without float64, imitated on the CPU."""

import torch


class WithoutFloat64(torch.Tensor):
    """A tensor on a device such as Apple's mps."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        if getattr(out, "dtype", None) == torch.float64:
            raise TypeError("the device has no float64")
        return out.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else out
