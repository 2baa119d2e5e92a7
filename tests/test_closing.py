"""What ends a sweep over repairs, on the tiny model: the demo's, and that of the cheapest repair of another's model."""

TINY = ("model=tiny_llama", "model.device=cpu", "budget=smoke", "tracker=none", "task=arc_easy")
QUICK = (*TINY, "budget.steps=4", "budget.warmup_steps=1", "budget.evaluate_every=2", "latency=none")
HEAD = "| compressor   | repair"


def lines_of(table):
    return [line for line in table.splitlines() if line.startswith("| gptq3 ")]


def test_the_demo_ends_with_table_sentence_and_answers(idp_run, bridges, shared_store, tmp_path):
    words = ("-m", "+experiment=demo", *QUICK, "task.names=[arc_easy]", *bridges, shared_store)
    done = idp_run(*words)
    end = done.stdout.partition("\n## ")[2]
    assert HEAD in end and len(lines_of(end)) == 3
    first, *trained = [line.split("|")[2].split()[0] for line in lines_of(end)]
    assert first == "lowrank" and set(trained) == {"prompt", "idp"}, "what trains nothing comes first"
    assert "gptq3 differs from dense by" in end or "nothing to repair here" in end
    for question in ("> What is the capital of France?", "> Why do leaves fall in autumn?"):
        assert question in end
    assert "dense" in end and "compressed" in end and "repaired" in end
    assert (tmp_path / "outputs" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert "on arc_easy, 50 documents" in done.stderr and "control prompt_0_25_tokens" in done.stderr
    again = idp_run(*words)
    assert "\n## " + end in again.stdout and "measured " not in again.stderr, "nothing is made anew"


def test_the_frontier_of_a_model_that_others_compressed(idp_run, bridges, shared_store, model_folders):
    checkpoint = ("compressor=external", f"compressor.path={model_folders('llama')}")
    words = ("-m", "+experiment=frontier", *checkpoint, *QUICK, *bridges, "recovery=hard_prompt,prompt", shared_store)
    said = idp_run(*words, "--plan").stdout
    assert "hard_prompt" in said and "prompt" in said
    end = idp_run(*words).stdout.partition("\n## ")[2]
    assert HEAD.split("|")[1] in end and "external" in end and "nothing to repair here" in end
