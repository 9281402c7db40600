"""What runs on the login node; imports neither torch nor mmengine nor mmseg, so commands answer at once."""

import sys

if "checkout" not in sys.modules:  # `python -m launch.NAME` finds checkout.py here, and takes this off again
    sys.path.append(__path__[0])
