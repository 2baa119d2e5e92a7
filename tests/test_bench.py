"""The benchmark runs and prints what it promises, here on random weights."""

import json
import subprocess
import sys


def test_bench_on_a_tiny_shape(tmp_path):
    command = [sys.executable, "-m", "idp.bench", "--shape", "tiny", "--documents", "3", "--rounds", "1"]
    command += [
        "--tasks",
        "arc_easy",
        "lambada_openai",
        "--dtype",
        "float32",
        "--latency-rounds",
        "2",
        "--agreement-documents",
        "3",
    ]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "bench.json")], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["task"] for row in found["scoring"]] == ["arc_easy", "lambada_openai"]
    for row in found["scoring"]:
        assert row["speed"] > 0 and row["tokens"]["none"] > 0 and 0 < row["share_of_matmul_rate"] < 2
    easy = found["scoring"][0]["tokens"]
    assert easy["none"] < easy["hflm"]
    (agreement,) = found["agreement"]
    assert agreement["same_choice"] == agreement["documents"] == 6 and agreement["largest_difference"] < 1e-3
    assert "speed against HFLM" in done.stdout and "prefill ratio" in done.stdout
