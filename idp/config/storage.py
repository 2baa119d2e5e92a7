"""How the numbers of prompts are stored."""

from __future__ import annotations

from dataclasses import dataclass

from idp.config.options import option


@dataclass
class Storage:
    bits: int = option("bits per number of a stored prompt", choices=(32, 16, 8, 4))
    prune: float = option("share of a prompt's numbers, the smallest, that are set to zero", minimum=0.0, maximum=0.99)
    symmetric: bool = option("bits=8 or 4: a grid around zero for each token; else from its smallest to its largest")
    half: str = option("bits=16: which kind", choices=("bfloat16", "float16"))
