"""`hydra/launcher=joblib`, where Hydra looks for launchers: only in modules of this package."""

import importlib.util

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

if importlib.util.find_spec("joblib") and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
    from idp.sweep import joblib_launcher

    class JoblibLauncher(joblib_launcher.JoblibLauncher):
        """As in `idp.sweep.joblib_launcher`."""


class OwnLaunchersAlone(SearchPathPlugin):
    """Takes the options of Hydra's launchers away where ours of the same name have options of their own.

    Hydra would check the one against the other. Programs other than this package's keep theirs.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra asks for it once all plugins are imported, before any config is read."""
        store = ConfigStore.instance().repo
        for name in ("joblib", "submitit_local"):
            if f"{name}_launcher.yaml" in store.get("schema", {}):
                store.get("hydra", {}).get("launcher", {}).pop(f"{name}.yaml", None)
