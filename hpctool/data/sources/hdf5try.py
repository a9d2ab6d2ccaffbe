"""A look at HDF5 files of others by a process of its own: what ends it, or never ends, is said before they are read.

The HDF5 library trusts what it reads. A few wrong bytes among values of any length (texts and lists) send it round in a
circle for ever, with Python's lock in its hand. So these are read once here, and of everything else two rows.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hpctool.data.schema import Source
from hpctool.errors import HpctoolError, SourceError

#: For the start, and then for each byte of the files: HDF5 reads texts at some tens of MB/s.
PATIENCE_S = 60.0
_BYTES_PER_S = 1 << 20


def try_apart(paths: Sequence[Path], source: Source) -> None:
    """Raises SourceError, with the file, where the HDF5 library crashes on one or comes to no end."""
    patience_s = PATIENCE_S + sum(path.stat().st_size for path in paths) / _BYTES_PER_S
    asked = json.dumps({"paths": [str(path) for path in paths], "source": asdict(source)}, default=list)
    command = [sys.executable, "-m", "hpctool.data.sources.hdf5try"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            said, _ = child.communicate(asked, timeout=patience_s)
        except subprocess.TimeoutExpired:
            child.kill()
            said, _ = child.communicate()
            raise SourceError(_last(said), f"the HDF5 library has read it for {patience_s:,.0f} s to no end.") from None
        except BaseException:
            child.kill()
            raise
    if child.returncode < 0:
        ended_by = signal.Signals(-child.returncode).name
        raise SourceError(_last(said), f"the HDF5 library crashes on it ({ended_by}).")


def _last(said: str) -> str:
    return said.splitlines()[-1] if said else "source.path"


def main() -> None:
    """The other process. What is wrong with a file in a way that can be said, its reader says afterwards."""
    from hpctool.data.sources.hdf5file import Hdf5Files

    asked = json.load(sys.stdin)
    reader = Hdf5Files(Source(**asked["source"]))
    for path in asked["paths"]:
        print(path, flush=True)
        try:
            reader.try_to_read(Path(path))
        except HpctoolError:
            return


if __name__ == "__main__":
    main()
