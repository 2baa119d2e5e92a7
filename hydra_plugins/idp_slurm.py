"""`hydra/launcher=slurm`, where Hydra looks for launchers: only in modules of this package."""

import importlib.util

# Hydra imports every module here at its start, also on machines that send nothing to a cluster.
if importlib.util.find_spec("submitit") and importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"):
    from idp.sweep import launcher

    class SlurmLauncher(launcher.SlurmLauncher):
        """As in `idp.sweep.launcher`."""
