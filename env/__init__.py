"""What a machine needs: dependencies, set-up, bare roots."""

import sys

if "repository" not in sys.modules:  # `import env.NAME` finds repository.py here
    sys.path.append(__path__[0])
