"""What torch's own allocator reports."""

import gc

from torch.profiler import ProfilerActivity, profile


def allocated(work) -> int:
    """Most bytes at once that torch's CPU allocator handed out during some work."""
    gc.collect()  # garbage of earlier work, freed inside, would count as memory that this work gave back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
