"""Exit codes with which a training task tells the batch script what to do next."""

FINISHED = 0
"""The training is finished: the only code with which a training job ends successfully."""

USER_ERROR = 2
"""A mistake of the user's (an unknown model type, a missing pretrained file): starting again cannot help."""

RESUME = 85
"""The ranks saved and exited together because they were asked to: continue in another start."""

SUPERSEDED = 87
"""A later start of the run is under way and has fenced this one off: this one ends, that one continues."""

FAILED = 1
"""A rank failed or hung: start again, within the budget of starts without a new checkpoint."""
