"""The count of a layer's kernels: attention's do not grow with the groups of rows where it is fused."""

from benchmarks.attention import _pairs, count


def test_fused_attention_takes_a_few_kernels_however_rows_differ():
    few, many = (count("llama32_1b", 100, 4000, prompts) for prompts in ([100], [25, 50, 75, 100]))
    assert few.fused <= 14 and many.fused <= 16 and many.rest == few.rest > 10
    assert many.plain > 3 * few.plain, "a group for each length of prompt"
    alone = count("llama32_1b", 100, 4000, [])
    assert alone.fused < few.fused and 0 < alone.share < few.share < 0.05


def test_pairs_of_queries_and_keys():
    # A question of 2 tokens sees 3 of the prompt and itself: 2 * 3 + 3; each of 4 answers of 5 all of that and itself.
    assert _pairs(2, 3) == 9 + 4 * (5 * 5 + 15)
