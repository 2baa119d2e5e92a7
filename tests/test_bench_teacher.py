"""The benchmark of the cached teacher runs; here on random weights."""

import sys

import pytest


def test_the_cached_loss_is_near_the_exact_one(monkeypatch, tmp_path, capsys):
    from benchmarks.teacher import main

    monkeypatch.chdir(tmp_path)
    words = ["--shape", "tiny", "--bits", "3", "--blocks", "4", "--batch-size", "2", "--sequence-length", "16"]
    monkeypatch.setattr(sys, "argv", ["teacher", *words, "--rounds", "1", "--dtype", "float32"])
    main()
    said = capsys.readouterr().out
    exact, cached = (float(said.partition(word)[2].split()[0]) for word in ("bits): ", "token, cached "))
    assert cached == pytest.approx(exact, rel=0.05) and exact > 0
    assert [line.split("|")[1].strip() for line in said.splitlines() if line.rstrip().endswith("x   |")] == [
        "lm",
        "resident",
        "cached",
    ]
