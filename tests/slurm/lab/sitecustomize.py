"""Python's own first import in the ranks of the tests on the cluster: takes its time where a test asks for it.

Once for each time that Slurm has started the job: the file that tells the test of it bears that number.
"""

import os
import time
from pathlib import Path

if "HPCTOOL_LAB_IMPORTING" in os.environ:
    importing = Path(f"{os.environ['HPCTOOL_LAB_IMPORTING']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}")
    if not importing.exists():
        time.sleep(1.0)
        importing.touch()
        time.sleep(4.0)
