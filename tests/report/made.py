"""Records that no run has written: sweeps over seeds whose every outcome and setting is known."""

from __future__ import annotations

import json
from pathlib import Path

from idp.store import digest

DATA = ("arc_easy", "piqa")
TEXTS = {  # of every document
    "context": "Is it so? Answer:",
    "choices": [" yes", " no"],
    "target": " yes",
    "loglikelihoods": [-1.0, -2.0],
    "generation": None,
    "prompt": None,
}


def recorder(runs: Path):
    """`record(name, ...)`: writes a run's record and outcomes into a folder of `runs`; no model is run.

    `right(model, task)` gives the scores of documents, `keys` makes other products of the same config, and
    `change(record)` edits what is written.
    """

    def made(
        name, *, seed=0, calibration=0, recovery=None, compressor="gptq3", keys=(), corpus=None, change=None, right=None
    ):
        import numpy as np
        import pyarrow as arrow
        from pyarrow import parquet

        place = runs / name
        place.mkdir(parents=True)
        row = "repaired" if recovery else "compressed"
        own = [compressor, calibration, corpus, *keys]
        stages = {"load": {"key": "a" * 64}, "compress": {"key": key_of(own), "seconds": 1.0}}
        if recovery:
            stages["recover"] = {"key": key_of([*own, recovery, seed])}
        generator = np.random.default_rng([seed, calibration])
        lines, results = [], {}
        for model in ("dense", "compressed", *(["repaired"] if recovery else [])):
            results[model] = {}
            for task in DATA:
                scores = (generator.random(40) < 0.5).astype(float) if right is None else right(model, task)
                results[model][task] = {"acc,none": float(scores.mean()), "acc_stderr,none": 0.08}
                lines += [
                    {**TEXTS, "model": model, "asked_for": task, "doc_id": n, "metric:acc,none": score}
                    for n, score in enumerate(scores)
                ]
        parquet.write_table(arrow.Table.from_pylist(lines), place / "samples.parquet")
        documents = len(lines) // len(results) // len(DATA)
        about = {
            "schema_version": 1,
            "name": name,
            "compressor": compressor,
            "row": row,
            "budget": "smoke",
            "config": {
                "seed": seed,
                "store": "store",
                "compressor": {
                    "quantization": {"method": "gptq", "bits": 3},
                    "calibration": {"corpus": None, "samples": 8, "seed": calibration},
                    "path": None,
                },
                "recovery": recovery or {"kind": "none"},
                "corpus": {"name": corpus or "embedded"},
            },
            "stages": stages,
            "parameters": {"model": 1000, "added": 10 if recovery else 0, "trainable": 0},
            "weights": {"sparsity": 0.0, "bits_per_weight": 3.1, "packed_bytes": 400, "effective_bytes": 400},
            "perplexity": {},
            "data": {task: {"documents": documents, "stand_in": None, "fingerprint": task} for task in DATA},
            "baselines": {
                model: {"results": found, "perplexity": {}} for model, found in results.items() if model != row
            },
            "selection": {},
            "latency": None,
            "training": None,
            "peak_memory_bytes": {},
        }
        written = {"config": {"model": "toy", "model_dtype": "float32"}, "results": results[row], "idp": about}
        if change is not None:
            change(written)
        (place / "record.json").write_text(json.dumps(written))
        return place

    return made


def key_of(what):
    """The key of an invented product."""
    return digest(what)


PROMPT = {"kind": "prompt", "length": 10}


def seeds_by_repair(record, calibrated, **more):
    """Seeds 0, 1, 2 by {gptq3} by {none, prompt}; `calibrated(seed)` says with which seed of calibration."""
    for seed in (0, 1, 2):
        record(f"none-{seed}", seed=seed, calibration=calibrated(seed), **more)
        record(f"prompt-{seed}", seed=seed, calibration=calibrated(seed), recovery=PROMPT, **more)
