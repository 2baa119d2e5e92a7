"""What the command line says: its help, and one line for each of Hydra's errors."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Sequence
from typing import Any

from idp import config, plugins, registry, suggestions
from idp.command import nearest
from idp.config import conf_dir, direct_model, one_line
from idp.errors import UserError
from idp.extras import lacks
from idp.quoting import quoted

GROUPS = (
    "model",
    "compressor",
    "recovery",
    "recovery/selector",
    "recovery/bank",
    "task",
    "corpus",
    "budget",
    "latency",
    "tracker",
    "optuna",
)
SUBMITIT = ("hydra-submitit-launcher", "slurm")
LAUNCHERS = {  # the package of each that is none of Hydra's own, and the extra that has it
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "slurm": SUBMITIT,
    "submitit_local": SUBMITIT,
    "submitit_slurm": SUBMITIT,
}


def text() -> str:
    """The text of `--help`."""
    groups = "\n".join(f"  {group + '=':<20} {' '.join(options(group))}" for group in GROUPS)
    return f"""idp: repairing compressed language models with prompts

  idp run compressor=gptq4 recovery=idp task=all
  idp run compressor=gptq3 recovery=lora recovery.rank=4 task=arc_easy budget=smoke
  idp run model=meta-llama/Llama-3.2-1B compressor=gptq3 recovery=idp             (a hub id, a folder or a GGUF file)
  idp run -m compressor=gptq3,gptq4 recovery=none,prompt,idp,lora                 (a sweep)

Beforehand, with the same overrides:
  idp plan ...                                       what would be made or reused, what it takes, what is wrong
  idp fetch ...                                      downloads what it takes from the hub, once

Afterwards:
  idp report outputs/runs                            one table over many runs
  idp sweep status                                   where each cell of the last sweep stands; wait, resume
  idp dashboard outputs/runs                         a W&B workspace and report over them
  idp compare outputs/runs                           a study, or any two runs: effect, interval, test
  idp analyze claims runs=outputs                    what the papers claim, and what these runs say
  idp generate prompt="Water boils at"               dense, compressed and repaired answers side by side
  idp export record=... out=...                      the model as others can load it
  idp.load("outputs/runs/...")                       the model from Python

Choices:
{groups}

Options (any can be overridden, such as recovery.training.steps=200):
{_fields("", config.Config)}
{_compressors()}
{_recoveries()}
  --cfg job            print the config and exit
  --plan               print every product with its key, seconds, memory and disk, and compute nothing
  -m, --multirun       run every combination of comma-separated values
  hydra/launcher=...   basic, joblib, submitit_local or slurm
"""


def help_of(argv: Sequence[str]) -> str:
    """The text of `--help` with the kinds of the plug-ins that a command line names.

    Raises:
        UserError: a plug-in does not import, or has no kind.
    """
    if others := [word for word in argv if word not in ("-h", "--help")]:
        registry.load_plugins(plugins.named(others))  # which takes Hydra
    return text()


def options(group: str) -> list[str]:
    """The choices of a config group: the YAML files that ship with it."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def check_flags(argv: Sequence[str]) -> None:
    """Refuses what begins with dashes and is none of Hydra's flags, whose own message has many lines.

    Args:
        argv: of a run's command line.

    Raises:
        UserError: such a word.
    """
    from hydra._internal.utils import get_args_parser

    known = [*get_args_parser()._option_string_actions, "--plan"]
    for given in argv:
        name = given.partition("=")[0]
        if not given.startswith("--") or any(flag.startswith(name) for flag in known):
            continue
        option = name.removeprefix("--").replace("-", "_")
        if option in GROUPS or option.partition(".")[0] in typing.get_type_hints(config.Config):
            raise UserError(f"{given}: options of a run have no dashes; write {option}=...")
        raise UserError(f"{given}: no such option of the command line{nearest(name, known)}")


def explain(error: Exception) -> str:
    """One line for an error of Hydra's or OmegaConf's: what, where, and what to do."""
    lacking = re.search(r"schema/(\w+)_launcher", str(error))
    if lacking and lacking[1] in LAUNCHERS:
        return lacks(f"hydra/launcher={lacking[1]}", *LAUNCHERS[lacking[1]])
    absent = re.search(r"Could not find 'hydra/launcher/(\w+)'", str(error))
    if absent and absent[1] in LAUNCHERS:
        return lacks(f"hydra/launcher={absent[1]}", *LAUNCHERS[absent[1]])
    if (given := getattr(error, "override", None)) is not None:  # of Hydra's grammar
        return _quoting(given)
    cause = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    missing = re.search(r"Could not find '([\w/]+)/([^']*)'", str(error))
    if missing and (known := choices(missing[1])):
        return _no_choice(missing[1], missing[2], known)
    unknown = re.search(r"Could not override '([\w.@/]+)'", str(error))
    message = one_line(error)
    if unknown and (mapping := _mapping(unknown[1])) is not None:
        message = f"{mapping}: a new entry takes a plus, such as +{mapping}.name=value, or +{mapping}={{name:value}}"
    elif unknown:
        message = f"{unknown[1]}: {_unknown(unknown[1], str(error))}"
    elif cause is not error and one_line(cause) not in message:
        message = f"{message}: {one_line(cause)}"
    return " ".join(message.split())


def _quoting(given: str) -> str:
    """What to write for an override that Hydra's grammar does not take."""
    key, equals, value = given.partition("=")
    if not equals:
        return f"{given}: options are name=value; quote one that has spaces: 'recovery.lengths=[10, 20]'"
    if value.startswith("~/"):
        return f"{given}: ~ is not expanded behind =; write {key}=$HOME/{value[2:]}"
    if value.startswith(("[", "{")):
        opened, end = ("[", "]") if value[0] == "[" else ("{", "}")
        if value.count(opened) > value.count(end):
            whole = f"{key}={value.rstrip(', ')}, ...{end}"
            return f"{given}: the shell cut it at a space; quote the whole: {shlex.quote(whole)}"
        return f"{given}: not a list or mapping that Hydra reads; quote odd words in it, such as '{key}=[\"a b\"]'"
    word = f"{key}=" + quoted(value, '"')
    return f"{given}: odd letters need quotes of Hydra's and of the shell's; write {shlex.quote(word)}"


def choices(group: str) -> list[str]:
    """As `options`, with those of Hydra's own and of other packages."""
    return sorted({*options(group), "basic", *LAUNCHERS}) if group == "hydra/launcher" else options(group)


def _no_choice(group: str, name: str, known: Sequence[str]) -> str:
    near = suggestions.nearest_choices(name, known)
    custom = f"; for another task of lm-eval: task=custom task.names=[{name}]" if group == "task" else ""
    other = f"; {direct_model.HINT}" if group == "model" else custom
    if near:
        model = other if group == "model" else ""
        return f"{group}={name}: no such option; did you mean {group}={near[0]}? There are {', '.join(known)}{model}"
    return f"{group}={name}: no such option; choose one of {', '.join(known)}{other}"


def _unknown(key: str, message: str) -> str:
    if "No match in the defaults list" in message:
        hint = suggestions.for_group(key, GROUPS)
        return f"there is no such group, or the chosen options do not use it; {hint} Groups are {', '.join(GROUPS)}"
    return f"there is no such option here; {suggestions.for_option(key)}"


def _mapping(key: str) -> str | None:
    """The option above a key, or at it, whose entries are the user's to name; None where there is none."""
    node: Any = config.Config
    for count, name in enumerate(parts := key.split(".")):
        hints = typing.get_type_hints(node)
        if name not in hints:
            return None
        types = [hints[name], *typing.get_args(hints[name])]
        if any(typing.get_origin(each) is dict for each in types):
            return ".".join(parts[: count + 1])
        node = next(filter(dataclasses.is_dataclass, types), None)
        if node is None:
            return None
    return None


def _fields(prefix: str, node: type) -> str:
    lines, hints = [], typing.get_type_hints(node)
    for item in dataclasses.fields(node):
        types = [item.metadata.get("node"), hints[item.name], *typing.get_args(hints[item.name])]
        if (nested := next((each for each in types if _is_node(each)), None)) is not None:
            if nested not in (config.Recovery, config.Budget, config.Training, config.Search):
                lines.append(_fields(f"{prefix}{item.name}.", nested))
            continue
        help = item.metadata.get("help", "")
        choices = config.choices_of(item)
        known = f" [{', '.join('null' if choice is None else str(choice) for choice in choices)}]" if choices else ""
        lines.append(f"  {prefix + item.name:<40} {help}{known}")
    return "\n".join(filter(None, lines))


def _is_node(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _own_fields(prefix: str, node: type, base: type) -> str:
    """As `_fields`, without what the base class has."""
    inherited = {item.name for item in dataclasses.fields(base)}
    lines = _fields(prefix, node).splitlines()
    return "\n".join(line for line in lines if line.split()[0].removeprefix(prefix) not in inherited)


def _compressors() -> str:
    """The options of each kind of compressor, without those that an earlier one has as well."""
    sections, known = [], _fields("compressor.", config.Compressor)
    for kind, node in sorted(
        registry.compressors().items(), key=lambda item: item[0] != registry.SORTS[config.Compressor].unsaid
    ):
        added = "\n".join(line for line in _fields("compressor.", node).splitlines() if line not in known)
        known = f"{known}\n{added}"
        if added:
            sections.append(f"with a compressor of the kind {kind}:\n{added}")
    return "\n".join(sections)


def _recoveries() -> str:
    return (
        "\n".join(
            f"with recovery={kind}:\n{_fields('recovery.', node)}"
            for kind, node in registry.recoveries().items()
            if _own_fields("recovery.", node, config.Recovery)  # none has nothing to say
        )
        + "".join(
            f"\nwith recovery/bank={kind}:\n{_fields('recovery.bank.', node)}"
            for kind, node in registry.banks().items()
        )
        + "".join(
            f"\nwith recovery/selector={kind}:\n{fields}"
            for kind, node in registry.selectors().items()
            if (fields := _own_fields("recovery.selector.", node, config.Selector))
        )
        + f"\nwith every recovery that is trained:\n{_fields('recovery.training.', config.Training)}"
        + f"\na search before that:\n{_fields('recovery.search.', config.Search)}"
    )
