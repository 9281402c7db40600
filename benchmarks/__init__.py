"""What is published of Baton's figures, and how it was measured (docs/benchmarks.md)."""

import sys

if "repository" not in sys.modules:  # `import benchmarks.NAME` finds repository.py here
    sys.path.append(__path__[0])
