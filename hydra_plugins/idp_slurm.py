"""`hydra/launcher=slurm` and `submitit_local`, where Hydra looks for launchers: only in modules of this package."""

import importlib.util

# Hydra imports every module here at its start, also on machines that send nothing to a cluster.
if importlib.util.find_spec("submitit") and importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"):
    from idp.sweep import launcher, local_launcher

    class SlurmLauncher(launcher.SlurmLauncher):
        """As in `idp.sweep.launcher`."""

    class SubmititLocalLauncher(local_launcher.SubmititLocalLauncher):
        """As in `idp.sweep.local_launcher`."""
