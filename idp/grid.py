"""The cells of a grid whose choices have different options.

`recovery=prompt,lora recovery.length=4` means a length to prompts and nothing to LoRA. Hydra wants every word to fit
every cell, and the default choice as well. Here a word about a swept group, of one value or several, reaches the cells
whose choice has that option; where none has it, it is refused, and where some have not, they are named before anything
starts.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.quoting import quoted

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

OPTION = "hydra.sweeper.where_known"  # the words that are set aside for `cells`
CONFIG = "config"
SWEEPER = "hydra/sweeper=grid"  # which takes the place of Hydra's own where words are set aside
GRIDS = ("basic", "grid")  # sweepers whose cells are known beforehand: Hydra's own, and the one here
OWN_SWEEPERS = ("hydra/sweeper", "optuna")  # words that choose a sweeper, which then makes its own cells
EXPERIMENT = "experiment"
typed: list[str] = []  # the command line as it was given, where Hydra was given another one


def set_aside(words: Sequence[str], loader: Any) -> tuple[list[str], list[str]]:
    """Of the words of a sweep those that every cell is given, and those about the options of a group that is swept.

    Args:
        words: a command line's overrides, flags left out.
        loader: Hydra's config loader, which knows the groups.

    Raises:
        UserError: several experiments, each of which has a grid of its own.
    """
    parsed = _parse(words, loader)
    if any(override.key_or_group in OWN_SWEEPERS for override in parsed):
        return list(words), []
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    if EXPERIMENT in swept:
        raise UserError(
            f"{EXPERIMENT}: each has a grid of its own, and a sweep takes one; give them one after the other, such as"
            f" -m +{EXPERIMENT}=nine_tasks"
        )
    swept |= set(_grid_of_experiment(words, parsed, loader))
    groups = _groups(swept, loader)
    aside = [word for word, override in zip(words, parsed, strict=True) if _is_about(override, groups)]
    return [word for word in words if word not in aside], aside


def needs_own(words: Sequence[str], loader: Any) -> bool:
    """Whether a command line without words to set aside sweeps a group and is about its options all the same: its
    experiment's grid gives one of them a value, or several are swept."""
    parsed = _parse(words, loader)
    if any(override.key_or_group in OWN_SWEEPERS for override in parsed):
        return False
    params = _grid_of_experiment(words, parsed, loader)
    grid = _parse([f"{key}={value}" for key, value in params.items()], loader)
    groups = _groups({override.key_or_group for override in [*grid, *parsed] if override.is_sweep_override()}, loader)
    return any(_is_about(each, groups) for each in grid) or any(_varies(each, groups) for each in [*grid, *parsed])


def as_override(aside: Sequence[str]) -> str:
    """The words that were set aside as one override of Hydra's, which `hydra_plugins.idp_grid.Grid` is given."""
    return f"{OPTION}=[{','.join(map(quoted, aside))}]"


def cells(
    shared: Iterable[Override], aside: Sequence[str], loader: Any, path: Sequence[str] = (), quiet: bool = False
) -> list[list[str]]:
    """The overrides of each cell, the last one varying fastest, as Hydra's own sweeper makes them.

    Args:
        shared: the grid, and the words that every cell is given.
        aside: those that reach only the cells that have the option.
        loader: Hydra's config loader.
        path: overrides that say where more YAMLs are, where the loader does not know it.
        quiet: not to say which words are left out where.

    Raises:
        UserError: no cell has an option that was given a value.
    """
    shared = list({override.get_key_element(): override for override in shared}.values())  # the last word counts
    groups = _groups({override.key_or_group for override in shared if override.is_sweep_override()}, loader)
    about = [override for override in shared if _is_about(override, groups)]  # of an experiment's own grid
    shared = [override for override in shared if override not in about]
    given = {override.key_or_group for override in _parse(aside, loader)}
    own = [override.input_line or "" for override in about if override.key_or_group not in given]
    aside = [*own, *aside]
    varying = [override for override in shared if _varies(override, groups)]
    fits = Fits(loader, path)
    lacking: dict[str, list[str]] = {}  # word -> the cells that have no such option

    made = _product(override for override in shared if override not in varying)
    for override in varying:
        if fits.is_group(override):
            made = _expanded(made, override, fits, lacking)
    if aside:
        fitting = [fits.of(cell, aside) for cell in made]
        for word in aside:
            lacking[word] = [_apart(cell, made) for cell, known in zip(made, fitting, strict=True) if word not in known]
            if len(lacking[word]) == len(made):
                raise UserError(fits.refusal(made[0], word))
        made = [[*cell, *known] for cell, known in zip(made, fitting, strict=True)]
    for override in varying:
        if not fits.is_group(override):
            made = _expanded(made, override, fits, lacking)
    if varying and not any(lacking[each.input_line or ""] for each in varying):  # in the order of Hydra's own
        made = [[*cell, *fits.of(cell, aside)] if aside else cell for cell in _product(shared)]
    for word, without in lacking.items():
        if without and word not in own and not quiet:
            where = "; ".join(dict.fromkeys(without))
            print(f"{word}: no such option, and left out, in {where}", file=sys.stderr, flush=True)
    return made


def _product(overrides: Iterable[Override]) -> list[list[str]]:
    """The words of each cell of a grid, as Hydra's own sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return list(itertools.chain(*BasicSweeper.split_arguments(list(overrides), None)))


def _expanded(cells: list[list[str]], override: Override, fits: Fits, lacking: dict[str, list[str]]) -> list[list[str]]:
    """The cells that have the swept option with each of its values, and those that have not as they are.

    Raises:
        UserError: none has it.
    """
    words = [word for (word,) in _product([override])]
    known = [bool(fits.of(cell, words[:1])) for cell in cells]
    if not any(known):
        raise UserError(fits.refusal(cells[0], words[0]))
    without = [cell for cell, has in zip(cells, known, strict=True) if not has]
    lacking[override.input_line or ""] = [_apart(cell, cells) for cell in without]
    return [
        [*cell, *given]
        for cell, has in zip(cells, known, strict=True)
        for given in ([[w] for w in words] if has else [[]])
    ]


def _apart(cell: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """What sets a cell apart from the others, in words."""
    return " ".join(each for each in cell if not all(each in other for other in cells))


class Fits:
    """Which of some words the config of a cell has an option for; each combination of YAMLs is composed once."""

    def __init__(self, loader: Any, path: Sequence[str] = ()):
        self.loader, self.path = loader, list(path)
        self._known: dict[tuple[str, ...], Any] = {}

    def of(self, cell: Sequence[str], words: Sequence[str]) -> list[str]:
        """Those that fit, one beside the other: `recovery/selector=random` brings options of its own."""
        parsed = zip(cell, _parse(cell, self.loader), strict=True)
        chosen = [word for word, override in parsed if self.is_group(override)]
        fitting = []
        for word, override in zip(words, _parse(words, self.loader), strict=True):
            if self.is_group(override) and self._compose([*chosen, word]) is not None:
                chosen.append(word)
                fitting.append(word)
        composed = self._compose(chosen)
        for word, override in zip(words, _parse(words, self.loader), strict=True):
            if not self.is_group(override) and (composed is None or _has(composed, override)):
                fitting.append(word)
        return [word for word in words if word in fitting]

    def refusal(self, cell: Sequence[str], word: str) -> str:
        """What Hydra says of a word that a cell has no option for."""
        from idp.usage import explain

        try:
            self.loader.load_configuration(CONFIG, [*self.path, *cell, word], _run())
        except Exception as error:
            return f"no cell of the sweep takes this: {explain(error)}"
        raise ValueError(f"{word} fits {' '.join(cell)}")

    def is_group(self, override: Override) -> bool:
        """Whether a word chooses a YAML of a group."""
        key = override.key_or_group
        return "." not in key and bool(self.loader.repository.group_exists(key))

    def _compose(self, chosen: Sequence[str]) -> Any:
        """The config of some choices; None where they do not go together, which the cell itself will say."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        key = tuple(chosen)
        if key not in self._known:
            try:
                self._known[key] = self.loader.load_configuration(CONFIG, [*self.path, *chosen], _run())
            except (HydraException, OmegaConfBaseException):
                self._known[key] = None
        return self._known[key]


def _has(composed: Any, override: Override) -> bool:
    """Whether a config has the option that a word sets; a value that does not fit is refused by the cell itself."""
    node = composed
    for name in override.key_or_group.split("."):
        if node is None or not hasattr(node, "keys") or name not in node:
            return False
        node = node._get_node(name)
    return True


def _grid_of_experiment(words: Sequence[str], parsed: Sequence[Override], loader: Any) -> dict[str, Any]:
    """The values of the options that the experiment of a command line sweeps."""
    chosen = [word for word, override in zip(words, parsed, strict=True) if override.key_or_group == EXPERIMENT]
    path = [word for word in words if word.startswith("hydra.searchpath=")]
    if not chosen:
        return {}
    config = loader.load_configuration(CONFIG, [*path, *chosen], _run())
    return dict(config.hydra.sweeper.get("params") or {})


def _groups(keys: Iterable[str], loader: Any) -> set[str]:
    """Those of some keys that are groups of YAMLs, as options name them."""
    return {name.replace("/", ".") for name in keys if loader.repository.group_exists(name)}


def _is_about(override: Override, groups: set[str]) -> bool:
    """Whether a word gives one value to an option of one of the groups."""
    return not override.is_sweep_override() and _plain(override) and _within(override.key_or_group, groups)


def _varies(override: Override, groups: set[str]) -> bool:
    """Whether a word gives several values to an option of one of the groups, or chooses within it."""
    return override.is_sweep_override() and override.is_discrete_sweep() and _within(override.key_or_group, groups)


def _plain(override: Override) -> bool:
    """Neither an addition nor a deletion, which say themselves what is to be there."""
    return not (override.is_add() or override.is_force_add() or override.is_delete() or override.is_hydra_override())


def _within(key: str, groups: set[str]) -> bool:
    """Whether it is about something within one of the groups: `recovery.length`, `recovery/selector`."""
    name = key.partition("@")[0].replace("/", ".")
    return any(name.startswith(f"{group}.") for group in groups)


def _parse(words: Sequence[str], loader: Any) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def _run() -> Any:
    from hydra.types import RunMode

    return RunMode.RUN
