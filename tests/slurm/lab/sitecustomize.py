"""Python's own first import in the ranks of the tests on the cluster: takes its time where a test asks for it."""

import os
import time
from pathlib import Path

if "HPCTOOL_LAB_IMPORTING" in os.environ and not Path(os.environ["HPCTOOL_LAB_IMPORTING"]).exists():
    time.sleep(1.0)
    Path(os.environ["HPCTOOL_LAB_IMPORTING"]).touch()
    time.sleep(4.0)
