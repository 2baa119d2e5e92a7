"""`hydra/launcher=slurm`, where Hydra looks for launchers: only in modules of this package."""

from idp.sweep import launcher


class SlurmLauncher(launcher.SlurmLauncher):
    """As in `idp.sweep.launcher`."""
