"""The cost of a run: seconds, forward passes and memory."""

import contextlib
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


def now() -> float:
    """Read a clock in seconds once the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sampler_seconds(guider: Any, sampler: Any, noise_BCHW: torch.Tensor, sigmas_S: torch.Tensor) -> float:
    """Return the seconds of the sampler's loop only, without loading and encoding."""
    function, seconds = sampler.sampler_function, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now()
        out = function(*args, **kwargs)
        seconds.append(now() - start)
        return out

    sampler.sampler_function = timed
    guider.sample(noise_BCHW, torch.zeros_like(noise_BCHW), sampler, sigmas_S, disable_pbar=True, seed=0)
    return seconds[-1]


def quartiles(ratios: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"q1": round(low, 4), "median": round(middle, 4), "q3": round(high, 4)}


def ratio_text(found: dict[str, float], digits: int = 3) -> str:
    return f"{found['median']:.{digits}f} ({found['q1']:.{digits}f} to {found['q3']:.{digits}f})"


@contextlib.contextmanager
def forward_passes(model: Any) -> Iterator[SimpleNamespace]:
    """Count the rows that pass through a model's network inside the block."""
    counter = SimpleNamespace(rows=0)

    def count(_module: Any, inputs: tuple[Any, ...]) -> None:
        counter.rows += len(inputs[0])

    handle = model.model.diffusion_model.register_forward_pre_hook(count)
    try:
        yield counter
    finally:
        handle.remove()


def resident_bytes(name: str = "VmRSS", pid: int | str = "self") -> int:
    """Return the resident memory of a process, or with VmHWM its peak, as the kernel counts it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


class AnonymousPeak(threading.Thread):
    """The peak of a process's own memory inside the block; pages of files that the kernel can drop do not count."""

    SECONDS = 0.05

    def __init__(self, pid: int | str = "self"):
        super().__init__(daemon=True)
        self.pid, self.bytes, self._done = pid, 0, threading.Event()

    def run(self) -> None:
        """Look again and again; a process that has ended stays at its peak."""
        with contextlib.suppress(OSError):
            while not self._done.wait(self.SECONDS):
                self.bytes = max(self.bytes, resident_bytes("RssAnon", self.pid))

    def __enter__(self) -> "AnonymousPeak":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def peak_memory(work: Callable[[], object]) -> int:
    """Return the peak bytes of some work: of torch's allocator on a GPU, and of the process on a CPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_bytes()
    work()
    return resident_bytes("VmHWM") - before
