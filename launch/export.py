"""Exports a run's best weights with their config, as a small folder that infer.py takes anywhere, or as ONNX.

--onnx also writes model.onnx, for any batch and image size where the model allows that, and reports how far
onnxruntime's results on real images are from PyTorch's. It needs env/setup.sh --with onnx.
"""

from pathlib import Path

import checkout

from jobs.run import exported, files, output
from jobs.run.errors import UserError
from launch.submit import interpreters, options, programs, runs, single_job

EXAMPLES = """\
  python launch/export.py first
  python launch/export.py first --out model --wait && python launch/infer.py model photo.jpg
  python launch/export.py first --onnx --check photos/
"""


def main() -> int:
    parser = checkout.parser(__doc__, EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="a run's name or path")
    parser.add_argument(
        "--out", metavar="DIR", help="a new, empty or earlier --out (default: one in the run)"
    )
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help=options.WHICH)
    parser.add_argument("--onnx", action="store_true", help="model.onnx too, checked with onnxruntime")
    parser.add_argument(
        "--check", nargs="+", metavar="IMAGE",
        help="with --onnx: images to compare on (default: 8 of the config's test dataset)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    options.add_common(parser, gpus=False, leaves=False)
    arguments = parser.parse_args()

    run = runs.find(arguments.run)
    checkpoint = options.checkpoint(arguments.checkpoint, run, address=False)
    programs.require(run, "jobs/export", "export.py")
    profile = options.profile_of(arguments, run, "infer")
    if not profile.stages.get("export"):  # as an inference, it is one process with the same model
        profile.stages["export"] = profile.stages.get("infer", {})
    resolved = options.settings(arguments, profile, "export")
    if arguments.check and not arguments.onnx:
        raise UserError("--check is for --onnx: it names the images that ONNX and PyTorch are compared on")
    lacking = exported.lacking() if arguments.onnx and interpreters.is_this(resolved) else ""
    if lacking:
        raise UserError(lacking)
    own = run.path / files.EXPORT()
    out = options.out_folder(arguments.out, own) if arguments.out else None
    job_arguments = ["--checkpoint", checkpoint, *(["--out", str(out)] if out else [])]
    job_arguments += ["--onnx"] * arguments.onnx
    if arguments.check:
        job_arguments += ["--check", *(str(existing(one)) for one in arguments.check)]
    batch = single_job.batch(run.path, resolved, job_arguments, f"{run.name}-export")
    if arguments.dry_run:
        return single_job.show(batch, arguments.json)
    job, process = single_job.submit(run, batch)
    if not arguments.json:
        print(f"export   {out or own} ({exported.RECORD} is written last)")
    code = single_job.tell(arguments, run, "export", job, process)
    if arguments.wait and not code and not arguments.json:
        records = (out or own).glob(exported.RECORD if out else f"*/{exported.RECORD}")
        folder = max(records, key=lambda one: one.stat().st_mtime).parent
        print(exported.summary(folder, exported.read(folder) or {}))
    return code


def existing(given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.exists() or output.special(path):
        raise UserError(f"there is no image or folder {given!r} to use for the check")
    return path


if __name__ == "__main__":
    checkout.run(main)
