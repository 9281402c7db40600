"""What runs on the login node. It imports no torch, mmengine or mmseg, so commands answer at once."""

import sys

if "checkout" not in sys.modules:  # `python -m launch.NAME` then finds checkout.py, which removes this
    sys.path.append(__path__[0])
