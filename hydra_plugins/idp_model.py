"""`model=<hub id, folder or GGUF file>`, where Hydra looks for choices: behind all YAMLs, so that a name stays a name.

Words that can only be paths, such as ./tiny_llama, come before them: Hydra would read ./tiny_llama.yaml.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from idp.config import conf_dir
from idp.config.direct_model import directly

SCHEME = "model"
GROUP = "model/"
PATHS = "paths"  # the place in the search path for words that can only be paths


class DirectModels(ConfigSource):
    """The choices of the group `model` that no YAML has: each word that names a model by itself.

    So such a word stands wherever a choice may: in a command, among others in a sweep, in an experiment's defaults.
    """

    @staticmethod
    def scheme() -> str:
        """Of its place in the search path."""
        return SCHEME

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """None: there is no list of all models."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Whether a choice of `model` names a model by itself."""
        word = config_path.removeprefix(GROUP)
        wanted = self.path != PATHS or word.startswith(("/", "./", "../"))
        return config_path.startswith(GROUP) and wanted and directly(word) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        """The YAML that such a choice would have."""
        values = OmegaConf.create(directly(config_path.removeprefix(GROUP)))
        return ConfigResult(provider=self.provider, path=self.full_path(), config=values, header={"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing to offer for completion."""
        return []


class WhereModelsAreFound(SearchPathPlugin):
    """Puts these choices into the search path of this package's programs; other programs have models of their own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra asks for it once all plugins are imported, before any config is read."""
        ours = str(conf_dir().absolute())
        if any(str(item.path).removeprefix("file://") == ours for item in search_path.get_path()):
            search_path.prepend("idp", f"{SCHEME}://{PATHS}")
            search_path.append("idp", f"{SCHEME}://")
