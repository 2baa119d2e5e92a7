"""When a sweep starts, with any launcher, it is given a folder of its own, and its cells are listed there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from idp.grid import GRIDS
from idp.quoting import quoted
from idp.store.modes import why_not_writable
from idp.sweep.cells import identity, list_cells


class ListCells(Callback):
    """Names the sweep's folder by the sweep's words, and writes the cells of a grid down before the first one starts.

    Other sweepers choose their cells as they go. Options of Hydra that would be ignored in silence are refused.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        choices = config.hydra.runtime.choices
        for group, would in (("hydra/launcher", "run here"), ("hydra/sweeper", "search nothing")):
            if choices[group] not in GRIDS:
                _refuse(f"{group}={choices[group]} is for sweeps, and this command would {would}: add -m")
        _refuse_other_folders(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _refuse_other_folders(config)
        overrides = list(config.hydra.overrides.task)
        aside = list(config.hydra.sweeper.where_known) if "where_known" in config.hydra.sweeper else []
        given = list(config.hydra.overrides.hydra)
        if not any(word.startswith("hydra.sweep.dir=") for word in given):
            folder = f"{config.hydra.sweep.dir}/{identity([*overrides, *aside])}"
            with read_write(config):  # the cells' own processes are told as well
                config.hydra.sweep.dir = folder
                config.hydra.overrides.hydra = [*given, f"hydra.sweep.dir={quoted(folder)}"]
        _refuse_unwritable(Path(config.hydra.sweep.dir))
        if config.hydra.runtime.choices["hydra/sweeper"] in GRIDS:
            from idp.grid import cells

            loader = GlobalHydra.instance().config_loader()
            grid = {**(config.hydra.sweeper.params or {})}
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(
                [*(f"{key}={value}" for key, value in grid.items()), *overrides]
            )
            list_cells(config, loader, cells(parsed, aside, loader))


def _refuse_other_folders(config: DictConfig) -> None:
    if config.hydra.job.chdir:
        _refuse(
            "hydra.job.chdir=true: a run's paths are relative to where its command is given, and its folder is named"
            " by what it computes; leave it out, and use output=... for another place"
        )


def _refuse_unwritable(folder: Path) -> None:
    if (reason := why_not_writable(folder)) is not None:  # of what a callback raises, Hydra makes a warning
        _refuse(f"output: cannot write in {folder} ({reason}); use output=...")


def _refuse(message: str) -> None:
    sys.exit(f"error: {message}")  # of an `Exception`, Hydra makes a warning, and goes on
