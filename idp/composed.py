"""The configs of a command line as `idp.run` would compose them, without running anything."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from idp.config import AWAITED, Config, conf_dir
from idp.errors import UserError
from idp.quoting import quoted

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig

    from idp.config import Recovery

SEARCH_PATH = "hydra.searchpath="


def configs(overrides: Sequence[str], sweep: bool = False, ahead: bool = False) -> Iterator[Config]:
    """The checked config of each run of a command line.

    Args:
        overrides: as Hydra has them.
        sweep: whether they are those of a sweep (`-m`): every combination of values that are separated by commas, here
            or in an experiment. What a sweeper draws from an interval keeps its default.
        ahead: whether a recovery may leave open whose repair it uses, where that run is not there yet.

    Raises:
        UserError: a config that no run could have.
        Exception: one of Hydra's, for overrides that it does not know; `idp.usage.explain` says it in a line.
    """
    from idp.checks import check
    from idp.registry import register

    overrides = with_plus(overrides)
    register(overrides)
    composer = Composer()
    for cell in _cells(list(overrides)) if sweep else [list(overrides)]:
        composed = composer.compose(cell)
        if ahead:
            _await(composed)
        yield check(composed)


class Composer:
    """Composes configs as Hydra does, one after the other, and each combination of YAMLs once.

    Hydra takes half a second to find and merge the YAMLs that a command line chooses, and a few milliseconds to set the
    options that it names; the runs of a sweep differ in options more often than in YAMLs.
    """

    def __init__(self) -> None:
        self._chosen: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """What `hydra.compose` gives for the overrides; kinds of plug-ins are registered beforehand.

        Raises:
            Exception: one of Hydra's, for overrides that it does not know.
        """
        import hydra
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra.core.override_parser.overrides_parser import OverridesParser

        with initialized() as loader:
            elsewhere = any(word.startswith(SEARCH_PATH) for word in overrides)  # there may be groups that are not here
            choices, options = [], []
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            for word, override in zip(overrides, parsed, strict=True):
                key = override.key_or_group
                known = "." not in key and (elsewhere or loader.repository.group_exists(key))
                if known or override.is_hydra_override():
                    choices.append(word)
                else:
                    options.append(override)
            if tuple(choices) not in self._chosen:
                self._chosen[tuple(choices)] = hydra.compose("config", choices)
            composed = copy.deepcopy(self._chosen[tuple(choices)])
            ConfigLoaderImpl._apply_overrides_to_config(options, composed)
            return composed


@contextlib.contextmanager
def initialized() -> Iterator[ConfigLoaderImpl]:
    """Hydra on this package's YAMLs, ready to compose; what finds them."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        yield cast("ConfigLoaderImpl", GlobalHydra.instance().config_loader())


def _await(composed: DictConfig) -> None:
    """Marks the repair of another run as one to come, where the recovery uses one and none is named."""
    from omegaconf import OmegaConf

    awaits = cast("type[Recovery]", OmegaConf.get_type(composed.recovery)).awaits
    if awaits and not composed.recovery[awaits]:
        composed.recovery[awaits] = AWAITED


def _cells(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of each run of a grid, as the sweeper makes them."""
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from idp.grid import cells, set_aside

    path = [word for word in overrides if word.startswith(SEARCH_PATH)]  # where a cell's own YAMLs are
    with initialized() as loader:
        parser = OverridesParser.create(config_loader=loader)
        overrides, aside = set_aside(overrides, loader)
        parsed = parser.parse_overrides(overrides)
        fixed = [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
        grid = hydra.compose("config", fixed, return_hydra_config=True).hydra.sweeper.get("params") or {}
        parsed = [*parser.parse_overrides([f"{key}={value}" for key, value in grid.items()]), *parsed]
        drawn = [override for override in parsed if override.is_sweep_override() and not override.is_discrete_sweep()]
        grid_of = [override for override in parsed if not (override.is_hydra_override() or override in drawn)]
        made = cells(grid_of, aside, loader, path)
    for cell in made:
        yield [*path, *cell]


def with_plus(words: Sequence[str]) -> list[str]:
    """The words, `experiment=name` being `+experiment=name`: an experiment takes the place of none.

    Raises:
        UserError: an option's dot stands where a group's slash belongs.
    """
    for word in words:
        key, equals, value = word.partition("=")
        group = key.replace(".", "/")
        if equals and "." in key and value.isidentifier() and (conf_dir() / group / f"{value}.yaml").exists():
            raise UserError(f"{word}: a choice of a group has a slash; write {group}={value}")
    return [f"+{word}" if word.startswith("experiment=") else word for word in words]


def without_flags(overrides: Sequence[str]) -> list[str]:
    """Hydra's `--config-dir` as the override that means the same, where flags are not known; all else as it is."""
    found, places = [], iter(overrides)
    for word in places:
        name, equals, folder = word.partition("=")
        if name in ("--config-dir", "-cd"):
            place = Path(folder if equals else next(places, "")).absolute()
            found.append(f"{SEARCH_PATH}[{quoted(f'file://{place}')}]")
        else:
            found.append(word)
    return found
