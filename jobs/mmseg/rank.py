"""One rank of a training: `python -m jobs.mmseg.rank RUN`, started by its supervisor (jobs/supervise).

Environment: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, BATON_START, BATON_JOB,
BATON_HEARTBEAT_FD. Exit codes: jobs/run/exit_codes.py.
"""

from __future__ import annotations

import sys

from jobs.engine.preemption import Preemption
from jobs.run.errors import take_all_characters


def main() -> int:
    # Install the signal handlers before importing torch, which takes seconds.
    preemption = Preemption()
    preemption.listen()
    take_all_characters()

    from jobs.mmseg import training

    return training.main(preemption)


if __name__ == "__mp_main__":
    # A data loader worker with `mp_start_method="spawn"`, before unpickling its dataset imports mmseg.
    from jobs.mmseg import compat

    compat.prepare()

if __name__ == "__main__":
    sys.exit(main())
