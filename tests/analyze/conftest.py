"""Invented studies: measured models whose every outcome is known, as the collection of records gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from idp.records.collect import Collection
from idp.records.measured import ModelScores, Perplexity, Score, Setting
from idp.store import digest

METRIC = "acc,none"


class Study:
    """A collection to which models are added, each with the documents that it has right."""

    def __init__(self, place: Path):
        self.place = place
        self.setting = Setting("setting", "toy", "float32", {})
        self.collection = Collection(settings=[self.setting])

    def add_second(self, right: dict[str, np.ndarray], name: str = "other", **more) -> ModelScores:
        """Adds the dense model of another setting; `more` as of `add`."""
        own, self.setting = self.setting, Setting(f"setting of {name}", name, "float32", {})
        self.collection.settings.append(self.setting)
        model = self.add("dense", right, name=name, **more)
        self.setting = own
        return model

    def add(
        self,
        role: str,
        right: dict[str, np.ndarray],
        compressor: str = "none",
        recovery: dict | None = None,
        *,
        seed: int = 0,
        added: int = 0,
        perplexity: dict[str, float] | None = None,
        sure: float | dict[str, float] = 0.7,
        doc_ids: dict[str, list[int]] | None = None,
        **more,
    ) -> ModelScores:
        """Adds a model; `sure` is the probability that it gives to the choice it takes, of all tasks or of each."""
        import pyarrow as arrow
        from pyarrow import parquet

        number = len(self.collection.models)
        folder = self.place / f"run-{number}"
        folder.mkdir(parents=True)
        rows = []
        for task, outcomes in right.items():
            self.setting.sample[f"task:{task}"] = (task, "fingerprint", len(outcomes))
            for place, outcome in enumerate(outcomes):
                high = sure[task] if isinstance(sure, dict) else sure
                shares = [high, 1 - high] if outcome else [1 - high, high]
                rows.append(
                    {
                        "model": role,
                        "asked_for": task,
                        "doc_id": (doc_ids or {}).get(task, range(len(outcomes)))[place],
                        "choices": [" yes", " no"],
                        "loglikelihoods": np.log(shares).tolist(),
                        "greedy": [bool(outcome), not outcome],
                        "target": " yes",
                        f"metric:{METRIC}": float(outcome),
                    }
                )
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "samples.parquet")
        kind = recovery["kind"] if recovery else "none"
        name = more.pop("name", "toy")
        keys = {"load": "dense" if name == "toy" else name}
        if compressor != "none":
            keys["compress"] = more.pop("base", compressor)
        if recovery:
            keys["recover"] = digest([recovery, seed, keys])
        model = ModelScores(
            id=str(number),
            parent=None,
            role=role,
            model=name,
            dtype="float32",
            compressor=compressor,
            recovery=kind,
            selector=(recovery or {}).get("selector", {}).get("kind"),
            uses_labels=more.pop("uses_labels", False),
            seed=seed,
            budget="small",
            setting=self.setting.id,
            keys=keys,
            config={
                "compressor": more.pop("compression", {"calibration": {}}) if compressor != "none" else None,
                "recovery": recovery,
                "corpus": {"name": "text"},
            },
            parameters={"model": 1000, "added": added, "trainable": added},
            repair_bytes=0,
            weights={},
            store=self.place,
            runs=[folder.name],
            folders=[folder],
            perplexity={name: Perplexity(value, None, None, None) for name, value in (perplexity or {}).items()},
            **more,
        )
        for task, outcomes in right.items():
            value = float(np.mean(outcomes))
            model.tasks[task] = Score(
                task, task, METRIC, value, None, len(outcomes), {METRIC: value}, True, folder / "samples.parquet", role
            )
        self.collection.models.append(model)
        return model


@pytest.fixture
def study(tmp_path):
    """An empty study."""
    return Study(tmp_path / "study")


@pytest.fixture
def draw():
    """`draw(share, documents, seed)`: as many documents right as the share says, at random places."""

    def drawn(share: float, documents: int = 400, seed: int = 0) -> np.ndarray:
        right = np.zeros(documents, bool)
        right[: round(share * documents)] = True
        return np.random.default_rng(seed).permutation(right)

    return drawn


@pytest.fixture
def turned():
    """`turned(right, gained, lost)`: the first wrong documents turned right, and the first right ones wrong."""

    def changed(right: np.ndarray, gained: int = 0, lost: int = 0) -> np.ndarray:
        after = right.copy()
        after[np.flatnonzero(~right)[:gained]] = True
        after[np.flatnonzero(right)[:lost]] = False
        return after

    return changed


PROMPT = {"kind": "prompt", "length": 25}
IDP = {"kind": "idp", "lengths": [25, 25, 50], "selector": {"kind": "attention"}}
LORA = {"kind": "lora", "rank": 8}
