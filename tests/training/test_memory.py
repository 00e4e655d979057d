import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from metricid.training.memory import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
kept = sys.argv[1] == "keep" and keep_freed_memory()
size = 40 * 2**20
before = libc.mallinfo2()
block = libc.malloc(size)
mapped = libc.mallinfo2().hblks - before.hblks
libc.free(block)
print(int(kept), mapped, libc.mallinfo2().arena - before.arena >= size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_large_block_is_kept_for_the_next_step():
    def run(argument):
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=True, timeout=120
        ).stdout.split()

    assert run("default") == ["0", "1", "False"]  # mapped apart, given back
    assert run("keep") == ["1", "0", "True"]
