"""Exit codes by which a training task tells the batch script what should happen next."""

FINISHED = 0
"""Training is finished: the only code with which a training job ends successfully."""

USER_ERROR = 2
"""The user's mistake (an unknown model type, a missing pretrained file): starting again cannot help."""

RESUME = 85
"""The ranks saved and left together, because they were asked to: go on in another incarnation."""

SUPERSEDED = 87
"""A later start of the run is under way and has fenced this one off: it ends, and that one goes on."""

FAILED = 1
"""A rank failed or stood still: start again, within the budget of starts without a new checkpoint."""
