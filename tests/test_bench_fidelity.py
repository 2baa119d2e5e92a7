"""The benchmark of fidelity runs; here on random weights, whose measured divergences are near the exact ones too."""

import sys

import pytest


def test_measured_divergences_are_near_the_exact_ones(model_folders, monkeypatch, tmp_path, capsys):
    from benchmarks.fidelity import main

    monkeypatch.chdir(tmp_path)
    words = ["--folder", str(model_folders("llama")), "--bits", "3", "--windows", "2", "--window", "128"]
    words += ["--tasks", "arc_easy", "--documents", "4", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["fidelity", *words])
    main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    means = {row[1]: float(row[2]) for row in rows if row and row[0] == "3 bits"}
    assert means["measured"] == pytest.approx(means["exact"], rel=0.05)
    assert means["top and one bin"] < 0.9 * means["exact"]
    added = {row[0]: row[2:] for row in rows if row and row[-1].endswith("%")}
    assert list(added) == ["text, the same pass", "arc_easy, 4 documents"]
