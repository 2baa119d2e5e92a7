"""`hydra/sweeper=optuna`, where Hydra looks for sweepers: only in modules of this package."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

from idp.sweep import search

ConfigStore.instance().store(group="schema", name="optuna_sweeper", node=search.SearchOptions)


class OptunaSweeper(search.OptunaSweeper):
    """As in `idp.sweep.search`."""


class OptunaSweeperAlone(SearchPathPlugin):
    """Takes the schemas of hydra-optuna-sweeper away from `idp.run` where that is installed, as earlier versions asked.

    It has a sweeper of the same name, and Hydra would check the options of ours against it. Other programs keep theirs.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra asks for it once all plugins are imported, before any config is read."""
        store = ConfigStore.instance().repo
        if "optuna_sweeper.yaml" in store.get("schema", {}):
            for name in ("optuna.yaml", "sampler"):
                store.get("hydra", {}).get("sweeper", {}).pop(name, None)
