"""The compression benchmark runs and prints what it promises, here on random weights."""

import json
import sys

from benchmarks import compress, compress_jobs


def test_both_tables(tmp_path, monkeypatch, capsys):
    kinds = {"compare": compress_jobs.compare, "grow": compress_jobs.grow}
    # In this process, to save the imports; the next test starts one of its own.
    monkeypatch.setattr(
        compress, "in_its_own_process", lambda job: {**kinds[job["kind"]](job), "peak_bytes": compress_jobs._peak()}
    )
    options = ["--model", "tiny_llama", "--compressors", "gptq4", "rtn4", "sparsegpt50_gptq4", "--samples", "8"]
    options += ["--length", "64", "--windows", "2", "--draws", "2", "--layers", "2", "3", "--widths", "64", "256"]
    options += ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "bench.json")]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    compress.main()
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["compressor"]: row for row in found["compared"]}
    for name in ("gptq4", "rtn4"):
        assert rows[name]["ratios"].keys() == {"plain"}
        assert [round(ratio, 6) for ratio in rows[name]["ratios"]["plain"]["each"]] == [1, 1]
    draws = rows["sparsegpt50_gptq4"]["draws"]
    for joint in draws:
        assert joint["ours"]["sparsity"] >= 0.5 > joint["plain"]["sparsity"]
        assert joint["mask_after"]["sparsity"] >= 0.5
        assert len({joint[way]["perplexity"] for way in joint}) == 3
    assert draws[0]["ours"]["perplexity"] != draws[1]["ours"]["perplexity"]
    assert [(row["layers"], row["width"]) for row in found["grown"]] == [(2, 64), (3, 64), (2, 256)]
    assert found["grown"][2]["model_bytes"] > 10 * found["grown"][0]["model_bytes"]
    printed = capsys.readouterr().out
    assert "of plain" in printed and "peak MB" in printed


def test_a_job_has_its_own_peak():
    job = {"kind": "grow", "overrides": ["compressor=rtn4", "model=tiny_llama"], "samples": 2, "length": 32}
    found = compress_jobs.in_its_own_process({**job, "layers": 2, "width": 128})
    assert 0 < found["model_bytes"] < found["peak_bytes_before"] <= found["peak_bytes"] and found["seconds"] > 0
