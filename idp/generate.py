"""`idp generate prompt="..."`: a run's dense, compressed and repaired answers side by side."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.api import VARIANTS, check_device, find
from idp.asked import check_count
from idp.command import failures_in_one_line, help_text, parse, quiet_libraries, wants_help, word
from idp.errors import UserError
from idp.language_model import NEW_TOKENS, Answer, LanguageModel
from idp.memory import release

if TYPE_CHECKING:
    from idp.export.load import Exported
    from idp.finished import Finished

quiet_libraries()

HELP = """idp generate: what a run's models answer, side by side, and which prompt of the bank each input was given

  idp generate prompt="What is 2+2?"                        (of the run that finished last)
  idp generate record=outputs/runs/<run> prompt='["Water boils at","A haiku:"]' chat=false max_new_tokens=30
  idp generate prompt="Tell me a story." temperature=0.7 top_p=0.9 seed=1 stream=true
  idp generate record=exports/mine file=prompts.txt models=compressed,repaired

GenerateOptions:"""
GAP = 2  # columns between two answers
NOTHING, BLANK = "(ended at once)", "(only white space)"  # stand for answers that show nothing


@dataclass
class GenerateOptions:
    """`key=value` words; `prompt` or `file` must be there."""

    record: str | None = word("a run's record.json or folder, or an export; else the newest run there is", default=None)
    prompt: str | None = word('what to go on from: a text, or several as \'["one","two"]\'', default=None)
    file: str | None = word("a text file with a prompt on each line", default=None)
    chat: bool | None = word(
        "true: ask by the model's chat template; false: go on from the text as it stands; else by the template where"
        " the model has one",
        default=None,
    )
    max_new_tokens: int = word(f"tokens of an answer, at most ({NEW_TOKENS} unless you say)", default=NEW_TOKENS)
    stop: str | None = word("what ends an answer: a text, or several as for prompt", default=None)
    temperature: float = word("tokens are drawn, from logits divided by it; 0: the likeliest is taken", default=0.0)
    top_k: int = word("how many of the likeliest tokens are drawn from; 0: all", default=0)
    top_p: float = word("the share of probability, of those, that is drawn from", default=1.0)
    seed: int = word("of the draws", default=0)
    stream: bool = word("show each answer as it comes, one model after the other", default=False)
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
        asked = Asked(prompts, options.max_new_tokens, stops, options.chat, sampling_of(options))
        print(f"run: {source.name}\n", flush=True)
        if options.stream:
            for piece in streamed(source, wanted, asked, options.device):
                print(piece, end="", flush=True)
        else:
            print(answers(source, wanted, asked, options.device), flush=True)


@dataclass(frozen=True)
class Asked:
    """What every model is asked."""

    prompts: list[str]
    max_new_tokens: int = NEW_TOKENS
    stops: list[str] = field(default_factory=list)
    chat: bool | None = False  # by the model's chat template; None: where it has one
    sampling: dict[str, Any] = field(default_factory=dict)  # as `LanguageModel.generate` takes it

    def texts(self, model: LanguageModel) -> list[str]:
        """What a model goes on from."""
        chat = model.has_chat if self.chat is None else self.chat
        return model.in_chat(self.prompts) if chat else self.prompts


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
        found[variant] = model.generate(asked.texts(model), asked.max_new_tokens, asked.stops, **asked.sampling)
        banked = model.prompts or banked
        del model, opened
        release()
    lines, width = [], shutil.get_terminal_size().columns
    for number, prompt in enumerate(asked.prompts):
        row = {variant: each[number] for variant, each in found.items()}
        lines += [side_by_side(prompt, row, banked, width), ""]
    return "\n".join(lines)


def streamed(
    source: Finished | Exported, variants: list[str], asked: Asked, device: str | None = None
) -> Iterator[str]:
    """What models answer as it comes, one model after the other and each under its name; arguments as of `answers`."""
    for variant in variants:
        opened = source.open(variant, device)
        model = LanguageModel(opened, source.batch_tokens, name=source.name, variant=variant)
        for prompt, text in zip(asked.prompts, asked.texts(model), strict=True):
            width = shutil.get_terminal_size().columns
            given = _given(model.choose([text])[0], model.prompts, width)
            yield "\n".join([*_wrapped(prompt, width, "> ", "  "), *given, variant, "-" * len(variant), ""])
            whole = ""
            for piece in model.stream(text, asked.max_new_tokens, asked.stops, **asked.sampling):
                whole += piece
                yield _shown(piece)
            yield f"{'' if whole.strip() else _said(whole)}\n\n"
        del model, opened
        release()


def sampling_of(options: GenerateOptions) -> dict[str, Any]:
    """How tokens are drawn, as `LanguageModel.generate` takes it.

    Raises:
        UserError: an option that means nothing.
    """
    from idp.evaluate.sampling import Sampling

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    sampling.check()
    return vars(sampling)


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
    lines += _given(next((answer.prompt for answer in answers.values() if answer.prompt), None), banked, width)
    room = max(8, (width - GAP * (len(answers) - 1)) // len(answers))
    columns = [[name, "-" * room, *_wrapped(_said(answer.text), room)] for name, answer in answers.items()]
    height = max(map(len, columns))
    cells = [[cell.ljust(room) for cell in column + [""] * (height - len(column))] for column in columns]
    return "\n".join([*lines, "", *((" " * GAP).join(row).rstrip() for row in zip(*cells, strict=True))])


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """A text's lines, wrapped; what a terminal would not show is shown as a mark."""
    shown = _shown(text.strip())
    lines = [textwrap.wrap(line, width - len(first), tabsize=4) or [""] for line in shown.split("\n")]
    flat = [line for part in lines for line in part]
    return [f"{later if number else first}{line}" for number, line in enumerate(flat)]


def _given(prompt: str | None, banked: list[str], width: int) -> list[str]:
    """Which prompt of the bank an input was given; nothing without a bank."""
    if prompt is None:
        return []
    return _wrapped(f"given {prompt}, {banked.index(prompt) + 1} of {len(banked)} prompts", width, "  ")


def _said(text: str) -> str:
    """An answer, or what stands for one that would show nothing."""
    return text if text.strip() else BLANK if text else NOTHING


def _shown(text: str) -> str:
    mark = "\N{REPLACEMENT CHARACTER}"
    return "".join(char if char.isprintable() or char in "\n\t" else mark for char in text)


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
