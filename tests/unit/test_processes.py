"""The processes below a supervisor, and their end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A process whose main thread has ended, and another not yet: a zombie, with a child.
HALF_ENDED = """
import ctypes, subprocess, sys, threading
child = subprocess.Popen(["sleep", "600"])
threading.Thread(target=ctypes.CDLL(None).pause).start()
print(child.pid, flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
SUPERVISOR = """
import subprocess, sys, time
from pathlib import Path
from jobs.supervise import processes
processes.adopt_orphans()
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child = int(worker.stdout.readline())
while Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
assert processes.descendants(processes.os.getpid()) == [child]
assert processes.end_all().keys() == {worker.pid, child}
assert not Path(f"/proc/{child}").exists()
"""


def test_children_of_a_process_that_has_half_ended_are_ended_too() -> None:
    command = [sys.executable, "-c", SUPERVISOR, HALF_ENDED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
