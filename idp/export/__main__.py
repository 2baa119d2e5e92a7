"""`idp export record=<record.json or run folder> out=<folder>`: a run's model as others can load it."""

from __future__ import annotations

import sys

from idp.command import failures_in_one_line, help_text, parse, quiet_libraries, wants_help
from idp.export.options import ExportOptions

quiet_libraries()

HELP = """idp export: a run's compressed model as a checkpoint that transformers loads, with its repair as PEFT adapters

  idp export record=outputs/runs/<run>/record.json out=exports/mine
  idp export record=outputs/runs/<run> out=exports/mine name=me/my-model-gptq4
  idp export record=outputs/runs/<run> out=exports/mine only=repair    # adapters for a checkpoint of others

ExportOptions:"""


def main(argv: list[str] | None = None) -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or wants_help(argv):
        print(help_text(ExportOptions, HELP))
        sys.exit(0 if argv else "error: nothing to export: give record=... and out=...")
    with failures_in_one_line("interrupted; nothing was written", also="nothing was written", command="export"):
        options = parse(ExportOptions, argv)
        from idp.export.checkpoint import export

        done = export(options)
    with failures_in_one_line(command="export"):
        if done.difference is not None:
            print(f"loaded again and compared: the largest difference of a logit is {done.difference:.3g}")
        if done.refused:
            print(f"warning: vLLM does not load lora/: {'; '.join(done.refused)}", file=sys.stderr)
        what = f"{done.folder}: the repair alone, for {done.base}" if done.base else done.folder
        print(f"exported: {what}", flush=True)


if __name__ == "__main__":
    main()
