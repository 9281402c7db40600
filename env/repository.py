"""The first import of every command here: it makes the checkout importable. `python3 env/NAME.py` looks for
modules in this folder first, which is how this one is found."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))
