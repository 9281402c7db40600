"""Prints a run's logs, the first error on top; with -f follows it across requeues, ranks and jobs.

Following ends with the run; Ctrl-C ends the following, never the run.
"""

import checkout

from jobs.run.directory import Run
from jobs.run.errors import UserError
from jobs.run.past import History
from launch.observe import following, log_files, states, wording
from launch.observe.log_files import LogFile
from launch.submit import runs

EXAMPLES = """\
  python launch/logs.py first                    the last lines of its newest job
  python launch/logs.py first -f                 follow it to its end
  python launch/logs.py first --rank 3 -n 200
  python launch/logs.py first --job evaluate
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="a run's name or path")
    parser.add_argument("-f", "--follow", action="store_true", help="follow it to its end")
    parser.add_argument("-n", "--lines", type=int, default=40, help="lines of each file (default 40; 0: all)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every line: libraries' deprecation warnings, each rank's repetitions",
    )
    parser.add_argument("--rank", type=int, help="only this rank (default: all)")
    parser.add_argument(
        "--job",
        choices=("prepare", "train", "evaluate", "infer", "export"),
        help="only this job (default: the newest)",
    )
    arguments = parser.parse_args()
    if arguments.lines < 0:
        raise UserError(f"--lines {arguments.lines} must be 0 or more")
    run = runs.find(arguments.run)
    past = states.past_of(run)
    error = log_files.first_error(run, past, arguments.job or "")
    if error:
        print("\n".join(error))
    if arguments.follow:
        return following.follow(run, arguments, error)
    files = log_files.find(run, past, arguments.job or "", arguments.rank)
    if not arguments.job and files:
        files = [file for file in files if file.job == files[-1].job and file.stage == files[-1].stage]
    files = [file for file in files if file.path.stat().st_size]
    if not files and arguments.rank is not None:
        check_rank(run, past, arguments.job or "", arguments.rank)
    if not files:
        print(f"no log yet; python launch/status.py {runs.typed(run)} says where it stands")
        return 0
    show(files, arguments.lines, arguments.all)
    typed = runs.typed(run)
    print(f"next: python launch/logs.py {typed} -f follows it; python launch/status.py {typed}")
    return 0


def check_rank(run: Run, past: History, stage: str, rank: int) -> None:
    """Raises UserError for a rank that no job of the run has had; any rank passes before the first start."""
    known = {file.rank for file in log_files.find(run, past, stage) if file.rank is not None}
    if stage in ("", "train"):
        known |= {number for one in past.incarnations for number in range(one.world_size)}
    if known and rank not in known:
        jobs = f"the job {stage} of {run.name}" if stage else run.name
        ranks = f"ranks 0 to {max(known)}" if max(known) else "rank 0 alone"
        raise UserError(f"--rank {rank}: {jobs} has {ranks}")


def show(files: list[LogFile], lines: int, everything: bool) -> None:
    """Prints the last `lines` lines of each file. What all ranks say is shown once, under the first rank."""
    sieve = log_files.Sieve()
    texts = {file.path: log_files.tail(file.path, 0) for file in files}
    if not everything:
        texts = {path: sieve.take(path, text) for path, text in texts.items()}
    ranks = [file for file in files if file.rank is not None]
    common = set() if everything else log_files.in_all([texts[file.path] for file in ranks])
    for file in files:
        print(f"==> {file.label} ({file.path})")
        text = texts[file.path]
        if common and file.rank is not None and file is not ranks[0]:
            text = [line for line in text if log_files.unstamped(line) not in common]
            left_out = wording.plural(len(texts[file.path]) - len(text), "line")
            print(f"    (without {left_out} that all ranks print)")
        print("\n".join(text[-lines:] if lines else text))
    left = sieve.left_out()
    if left:
        print(f"left out: {left}; --all shows them")


if __name__ == "__main__":
    checkout.run(main)
