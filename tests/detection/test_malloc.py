import subprocess
import sys

import pytest

# Page faults of the second of two blocks of 64 MiB, each freed after use: only fresh pages cause faults.
FAULTS = """
import resource, sys
import numpy as np
from pipeline.detection.malloc import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def use():
    block = np.ones(64 * 2**20, np.uint8)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc's malloc")
def test_freed_memory_is_used_again():
    faults = {}
    for how in ("default", "kept"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["kept"] < 10 < faults["default"]
