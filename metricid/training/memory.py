"""How the C library treats memory that a network on the CPU frees."""

import ctypes
import sys

# Parameters of mallopt(3), from <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next step instead of giving it back to the system.

    By default it maps each block above 32 MB afresh and unmaps it when it is freed; the system then clears
    every page again in each step, which takes 3 to 18% of the time of a resnet18 (batches of 64 and 128; see
    `benchmarks/training.py`). The price is that the process stays as large as it was at its largest. Holds
    for the whole process.

    Returns:
        Whether both settings took effect; False with another C library, which is no error.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Older releases of glibc take at most 32 MB for the first.
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
