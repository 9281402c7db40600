"""`python converter_process.py PARENT SCRIPT ARGS…`: a converter that does not outlive the job.

It is started as the leader of its own session. When the job is killed, even by SIGKILL, the kernel signals
this process, which kills its whole group: the converter and any process pool that it has created.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys


def main() -> int:
    signal.signal(signal.SIGHUP, lambda *_: os.killpg(0, signal.SIGKILL))
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGHUP)
    parent, *script = sys.argv[1:]
    if os.getppid() != int(parent):  # it has already gone
        return 1
    return subprocess.call([sys.executable, *script])


if __name__ == "__main__":
    sys.exit(main())
