"""Small finished runs, each made once per session, all in one store."""

import json
import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_run(compose, tmp_path_factory):
    """`finished_run(*overrides)`: a run of the tiny model; its folder and its record."""
    from idp.pipeline import run

    root, made = tmp_path_factory.mktemp("outputs"), {}
    words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
    draw = random.Random(0)
    text = root / "text.txt"  # read much sooner than the embedded corpus
    text.write_text("\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(300)))
    small = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]")
    corpus = ("corpus=local", f"corpus.path={text}", "corpus.name=bridges")

    def finished(*overrides: str) -> tuple[Path, dict]:
        if overrides not in made:
            _, place = run(compose(*small, *corpus, "baselines=false", *overrides, f"output={root}"))
            made[overrides] = place.parent, json.loads(place.read_text())
        return made[overrides]

    return finished
