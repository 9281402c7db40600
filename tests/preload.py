"""Imported once by the server that test ranks are forked from (tests/support/tiny.py): what takes long.

Nothing of jobs.train, which has memory that a rank shares with its own children only.
"""

import gc

from jobs.mmseg import compat

compat.prepare()

import matplotlib.backends.backend_agg  # noqa: E402
import matplotlib.figure  # noqa: E402, F401
import mmseg.datasets  # noqa: E402
import mmseg.models  # noqa: E402
import mmseg.visualization  # noqa: E402, F401
import torch._dynamo  # noqa: E402
import torch.utils.tensorboard  # noqa: E402, F401
import xxhash  # noqa: E402, F401

# mmengine collects garbage in every data set that it makes: not what is imported here.
gc.collect()
gc.freeze()
