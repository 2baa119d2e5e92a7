"""A tracker from outside the package: followed by it, a run is the run that it is without it."""

import json

TINY = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "baselines=false", "compressor=rtn3")
TINY += ("evaluation.perplexity=[]", "recovery=prompt", "recovery.length=3")


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_follows_a_run(outside, run_here, tmp_path):
    words = outside("jsonl")
    record = run_here(*words, *TINY, "tracker=jsonl")
    told = lines_of(tmp_path / "outputs" / "runs" / record["idp"]["name"] / "events.jsonl")
    events = [line["event"] for line in told]
    assert events[0] == "start" and events[-2:] == ["summary", "finish"] and set(events[1:-2]) == {"step"}
    assert told[0]["compressor"] == "rtn3" and len({line["run"] for line in told}) == 1
    assert told[-2]["arc_easy/acc"] == record["results"]["arc_easy"]["acc,none"]


def test_one_that_fails_never_loses_a_run(outside, run_here, caplog):
    words = outside("jsonl")
    record = run_here(*words, *TINY, "tracker=jsonl", "tracker.file=/nowhere/events.jsonl")
    assert record["results"]["arc_easy"]["acc,none"] >= 0
    assert "tracker jsonl: " in caplog.text and "the run goes on without it" in caplog.text
