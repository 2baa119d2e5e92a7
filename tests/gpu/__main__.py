"""`python -m tests.gpu`: what a real GPU does with seven billion parameters, within 9 minutes, without network.

Random weights of a real shape, texts of random words, everything made there. Each line comes with its figure and its
verdict; a step that fails does not keep the others from running; the JSON has what was measured also where the command
was cut. `--device cpu --shape tiny` runs the same steps on a CPU, to see that they run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # there is no network: nothing may wait for one
    os.environ.setdefault(name, "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

SECONDS = 510.0  # of 9 minutes: unpacking wheels before it, and ending after it, want some


def main(words: list[str] | None = None) -> int:
    """All steps, or those that are named; the exit status is 1 where something failed."""
    from tests.gpu.packages import missing

    if lacking := missing():
        sys.exit(
            f"error: not installed here: {', '.join(lacking)}. Where pip reaches an index, sh tests/gpu/wheels.sh"
            " gathers what a bare machine lacks in wheels/; with that folder here, make gpu takes it from there"
        )

    from idp.plan.shapes import SHAPES
    from tests.gpu.bench import Bench
    from tests.gpu.check import Check
    from tests.gpu.lines import said, table
    from tests.gpu.steps import ORDER, find

    parser = argparse.ArgumentParser("python -m tests.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(ORDER)}; all of them unless given")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="llama_7b", help="of the random model")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them together")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu/gpu.json"), help="where the JSON goes")
    parser.add_argument("--folder", type=Path, help="where models are written, 20 GB; else beside the output")
    parser.add_argument("--together", action="store_true", help="all steps in this process (on a CPU always)")
    options = parser.parse_args(words)
    if unknown := [step for step in options.steps if step not in ORDER]:
        parser.error(f"no step {unknown[0]}: {', '.join(ORDER)}")

    if options.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads only get in each other's way here
    else:  # one card: evaluation would spread over several
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix="idp-gpu-", dir=options.folder or options.output.parent, ignore_cleanup_errors=True
    ) as folder:
        bench = Bench(options.device, options.shape, Path(folder).absolute())

        def tell(line: dict) -> None:
            print(f"{time.monotonic() - started:5.0f} s  {said(line['step'], line)}", flush=True)

        check = Check(bench, options.seconds, options.output, tell)
        try:
            steps = [find(name) for name in ORDER if name in (options.steps or ORDER)]
            check.run(steps, apart=bench.cuda and not options.together)
        finally:
            print(f"\n{table(check.found)}\n\nwritten: {options.output}", flush=True)
    return int(check.failed)


def _stop(*_: object) -> None:
    sys.exit("stopped from outside; what was measured is written")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
