"""Each benchmark's first import. After it the checkout is importable, by a Python that has what is needed.

`python benchmarks/NAME.py` looks for modules in this folder first, which is how this one is found. Readable
for the python3 of any login node (3.6 and later), as launch/checkout.py is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import environment

ROOT = Path(__file__).resolve().parent.parent

# Nowhere is this folder's `run` or `prepare` what another module looks for; last, for processes that a
# benchmark spawns begin with the same import.
_HERE = str(ROOT / "benchmarks")
sys.path[:] = [*(folder for folder in sys.path if folder != _HERE), _HERE]
environment.enter()
