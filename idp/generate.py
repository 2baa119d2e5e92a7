"""`idp generate prompt="..."`: a run's dense, compressed and repaired answers side by side."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from idp.api import NEW_TOKENS, VARIANTS, Answer, LanguageModel, check_count, check_device, find
from idp.command import failures_in_one_line, help_text, parse, quiet_libraries, wants_help, word
from idp.errors import UserError
from idp.memory import release

if TYPE_CHECKING:
    from idp.export.load import Exported
    from idp.finished import Finished

quiet_libraries()

HELP = """idp generate: what a run's models answer, side by side, and which prompt of the bank each input was given

  idp generate prompt="The capital of France is"            (of the run that finished last)
  idp generate record=outputs/runs/<run> prompt='["Water boils at","A haiku:"]' max_new_tokens=30
  idp generate prompt="What is the capital of France?" chat=true          (as the model was taught to be asked)
  idp generate record=exports/mine file=prompts.txt models=compressed,repaired

GenerateOptions:"""
GAP = 2  # columns between two answers


@dataclass
class GenerateOptions:
    """`key=value` words; `prompt` or `file` must be there."""

    record: str | None = word("a run's record.json or folder, or an export; else the newest run there is", default=None)
    prompt: str | None = word('what to go on from: a text, or several as \'["one","two"]\'', default=None)
    file: str | None = word("a text file with a prompt on each line", default=None)
    chat: bool = word("ask by the model's chat template (else a text is gone on from as it stands)", default=False)
    max_new_tokens: int = word(f"tokens of an answer, at most ({NEW_TOKENS} unless you say)", default=NEW_TOKENS)
    stop: str | None = word("what ends an answer: a text, or several as for prompt", default=None)
    models: str | None = word("which to show, of dense,compressed,repaired; else all that there are", default=None)
    device: str | None = word("auto, cpu, cuda or cuda:N; else that of the run", default=None)
    store: str | None = word("the store of the run's artifacts, if it was moved", default=None)


def main(argv: list[str] | None = None) -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or wants_help(argv):
        print(help_text(GenerateOptions, HELP))
        sys.exit(0 if argv else "error: nothing to ask: give prompt=... or file=...")
    with failures_in_one_line(command="generate"):
        options = parse(GenerateOptions, argv)
        prompts, stops = prompts_of(options), listed(options.stop) if options.stop else []
        check_count("max_new_tokens", options.max_new_tokens)
        check_device(options.device)
        source = find(options.record or _newest(), options.store)
        wanted = _wanted(options.models, source.variants)
        for variant in wanted:
            source.check(variant)
        print(f"run: {source.name}\n", flush=True)
        asked = Asked(prompts, options.max_new_tokens, stops, options.chat)
        print(answers(source, wanted, asked, options.device), flush=True)


@dataclass(frozen=True)
class Asked:
    """What every model is asked."""

    prompts: list[str]
    max_new_tokens: int = NEW_TOKENS
    stops: list[str] = field(default_factory=list)
    chat: bool | None = False  # by the model's chat template; None: where it has one


def answers(source: Finished | Exported, variants: list[str], asked: Asked, device: str | None = None) -> str:
    """What models answer, side by side, prompt by prompt; one of them is in memory at a time.

    Args:
        source: what the models are opened of.
        variants: which of dense, compressed and repaired.
        asked: what they are asked.
        device: where to open them; None: as in the run.
    """
    found: dict[str, list[Answer]] = {}
    banked: list[str] = []
    for variant in variants:
        opened = source.open(variant, device)
        model = LanguageModel(opened, source.batch_tokens, name=source.name, variant=variant)
        chat = model.has_chat if asked.chat is None else asked.chat
        texts = model.in_chat(asked.prompts) if chat else asked.prompts
        found[variant] = model.generate(texts, asked.max_new_tokens, asked.stops)
        banked = model.prompts or banked
        del model, opened
        release()
    lines, width = [], shutil.get_terminal_size().columns
    for number, prompt in enumerate(asked.prompts):
        row = {variant: each[number] for variant, each in found.items()}
        lines += [side_by_side(prompt, row, banked, width), ""]
    return "\n".join(lines)


def prompts_of(options: GenerateOptions) -> list[str]:
    """The prompts that the options name.

    Raises:
        UserError: there are none, or both `prompt` and `file`, or the file cannot be read.
    """
    if (options.prompt is None) == (options.file is None):
        both = "both prompt= and file= are given: which?" if options.prompt else "nothing to ask:"
        raise UserError(f"{both} give prompt=... or file=...")
    if options.prompt is not None:
        return listed(options.prompt)
    assert options.file is not None  # one of the two is given
    try:
        text = Path(options.file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"file={options.file}: {reason}") from error
    if not (prompts := [line for line in text.splitlines() if line.strip()]):
        raise UserError(f"file={options.file}: no prompt in it; write one on each line")
    return prompts


def listed(value: str) -> list[str]:
    """A JSON list of texts, or the value itself, which may well begin with a bracket."""
    try:
        texts = json.loads(value)
    except ValueError:
        return [value]
    several = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    return texts if several else [value]


def side_by_side(prompt: str, answers: dict[str, Answer], banked: list[str], width: int) -> str:
    """One prompt, the prompt of the bank that it was given, and a column for each model's answer.

    Args:
        prompt: what was asked.
        answers: by model.
        banked: the names of the bank's prompts; empty without a bank.
        width: of the terminal, in characters.
    """
    lines = _wrapped(prompt, width, "> ", "  ")
    chosen = [answer.prompt for answer in answers.values() if answer.prompt is not None]
    if chosen:
        lines += _wrapped(f"given {chosen[0]}, {banked.index(chosen[0]) + 1} of {len(banked)} prompts", width, "  ")
    room = max(8, (width - GAP * (len(answers) - 1)) // len(answers))
    columns = [[name, "-" * room, *_wrapped(answer.text, room)] for name, answer in answers.items()]
    height = max(map(len, columns))
    cells = [[cell.ljust(room) for cell in column + [""] * (height - len(column))] for column in columns]
    return "\n".join([*lines, "", *((" " * GAP).join(row).rstrip() for row in zip(*cells, strict=True))])


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """A text's lines, wrapped; what a terminal would not show is shown as a mark."""
    mark = "\N{REPLACEMENT CHARACTER}"
    shown = "".join(char if char.isprintable() or char in "\n\t" else mark for char in text.strip())
    lines = [textwrap.wrap(line, width - len(first), tabsize=4) or [""] for line in shown.split("\n")]
    flat = [line for part in lines for line in part]
    return [f"{later if number else first}{line}" for number, line in enumerate(flat)]


def _newest() -> str:
    from idp.finished import newest

    return str(newest().parent)


def _wanted(models: str | None, variants: list[str]) -> list[str]:
    if models is None:
        return variants
    wanted = [name.strip() for name in models.split(",")]
    if unknown := [name for name in wanted if name not in VARIANTS]:
        raise UserError(f"models={models}: {unknown[0] or 'an empty word'} is none of {', '.join(VARIANTS)}")
    return [name for name in VARIANTS if name in wanted]


if __name__ == "__main__":
    main()
