"""The commands of docs/slurm.md, one after the other, on a real SLURM and a tiny model."""

import re
import shlex
from pathlib import Path

from .test_slurm import BASE, JOBS, cells, idp, on_cluster, pytestmark, states  # noqa: F401

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"
SMALL = [word for word in BASE if not word.startswith(("compressor=", "recovery="))]
ONE_CELL = ("compressor=rtn3", "recovery=none", "seed=0")  # of a study


@on_cluster("time limit")
def test_they_do_what_the_page_says(here, corpus):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.S)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) >= 8
    for python, dash_m, module, *words in commands:
        assert (python, dash_m) == ("python", "-m")
        if module in ("idp.run", "idp.fetch"):
            own = [word for word in words if not word.startswith(("hydra.launcher.cpus", "hydra.launcher.mem"))]
            cells_of = ONE_CELL if any(word.startswith("+experiment=") for word in words) else ()
            idp(module.removeprefix("idp."), *own, *JOBS[1:], *SMALL, *cells_of, corpus, "tracker=none")
        else:
            done = idp(module.removeprefix("idp."), *words)
            if words[0] == "wait":
                assert set(states(cells())) == {"done"}
            if module == "idp.report":
                assert "gptq4" in done.stdout
