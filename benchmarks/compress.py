"""`idp bench compress`: our compression against llmcompressor called plainly, and how it grows.

Two tables. The first runs each compressor twice on the same calibration blocks in the same batches, by this project
and by llmcompressor's own recipe, and compares perplexity and seconds; where it prunes and quantises also a third time,
with llmcompressor's GPTQ and the mask applied again after each layer. `--draws` repeats that on other calibration
text: ratios are then geometric means, with the smallest and the largest. The second compresses Llama models of random
weights, and shows how seconds and peak memory grow with layers and width. Each figure comes from a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.compress_jobs import in_its_own_process

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

JOINT = ["sparsegpt50_gptq4", "sparsegpt_2of4_gptq4", "wanda50_gptq4"]
COMPRESSORS = ["rtn4", "gptq4", "gptq3", "awq4", "wanda50", "sparsegpt50", *JOINT]


def main() -> None:
    """Both tables on standard output, and as JSON."""
    options = _arguments()
    from idp.store import write_json

    compared = [_compare(name, options) for name in options.compressors]
    _print_compared(compared)
    grown = [_grow(layers, options.widths[0], options) for layers in options.layers]
    grown += [_grow(layers, width, options) for layers in options.layers[:1] for width in options.widths[1:]]
    if grown:
        _print_grown(grown)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    about = {key: value for key, value in vars(options).items() if key != "output"}
    write_json(options.output, {"options": about, "compared": compared, "grown": grown})
    print(f"\nwritten: {options.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="idp bench compress", description=__doc__.split("\n")[0])
    parser.add_argument("--compressors", nargs="*", default=COMPRESSORS, help="names of conf/compressor")
    parser.add_argument("--model", default="smollm2_135m_instruct", help="the model of the first table")
    parser.add_argument("--corpus", help="calibration text, as compressor.calibration.corpus; default: embedded")
    parser.add_argument("--perplexity", default="corpus", help="a corpus by name, or a text file")
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 tokens scored, at most")
    parser.add_argument("--draws", type=int, default=1, help="draws of calibration text, ways interleaved in each")
    parser.add_argument("--samples", type=int, default=128, help="calibration sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--grow", default="gptq4", help="the compressor of the second table")
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 8, 16], help="at the first width; none: no growth")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048], help="at the first layer count")
    parser.add_argument("--store", default="outputs/store", help="folder of stored artifacts")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/compress.json"), help="where the JSON goes")
    return parser.parse_args()


def _compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    overrides = [f"compressor={name}", f"model={options.model}", f"store={options.store}"]
    if options.corpus:
        overrides.append(f"compressor.calibration.corpus={options.corpus}")
    job = {"kind": "compare", "overrides": overrides, "samples": options.samples, "length": options.length}
    job |= {"perplexity": options.perplexity, "window": 512, "windows": options.windows}
    ways = ["ours", "plain", *(["mask_after"] if name in JOINT else [])]
    draws: list[dict[str, Any]] = []
    for seed in range(options.draws):
        draws.append({})
        for way in ways:
            found = draws[-1][way] = in_its_own_process({**job, "way": way, "seed": seed})
            summary = f"perplexity {found['perplexity']:.3f}, {found['seconds']:.1f} s"
            print(f"{name} {way}, draw {seed + 1} of {options.draws}: {summary}", file=sys.stderr, flush=True)
    return {
        "compressor": name,
        "ratios": {way: _ratios(draws, way, "perplexity") for way in ways[1:]},
        "seconds_ratio": statistics.median(draw["ours"]["seconds"] / draw["plain"]["seconds"] for draw in draws),
        "draws": draws,
    }


def _ratios(draws: list[dict[str, Any]], way: str, figure: str) -> dict[str, Any]:
    """Ours over another way's: of each draw, and their geometric mean."""
    each = [draw["ours"][figure] / draw[way][figure] for draw in draws]
    return {"each": each, "mean": statistics.geometric_mean(each)}


def _grow(layers: int, width: int, options: argparse.Namespace) -> dict[str, Any]:
    job = {"kind": "grow", "overrides": [f"compressor={options.grow}", "model=tiny_llama"]}
    job |= {"samples": options.samples, "length": options.length, "layers": layers, "width": width}
    return {"layers": layers, "width": width, **in_its_own_process(job)}


def _print_compared(compared: list[dict[str, Any]]) -> None:
    lines = []
    for row in compared:
        first, ratios = row["draws"][0], row["ratios"]
        sparsity = {way: min(draw[way]["sparsity"] for draw in row["draws"]) for way in ("ours", "plain")}
        peak = {way: max(draw[way]["peak_bytes"] for draw in row["draws"]) for way in ("ours", "plain")}
        lines.append(
            [
                row["compressor"],
                f"{first['ours']['perplexity']:.3f}",
                _of(ratios["plain"]),
                _of(ratios["mask_after"]) if "mask_after" in ratios else "",
                f"{sparsity['ours']:.3f}",
                f"{sparsity['plain']:.3f}",
                f"{first['ours']['seconds']:.1f}",
                f"{row['seconds_ratio']:.2f}",
                f"{peak['ours'] / 1e9:.2f}",
                f"{peak['plain'] / 1e9:.2f}",
            ]
        )
    headers = ["compressor", "perplexity", "of plain", "of mask after", "least sparse layer", "plain", "seconds"]
    headers += ["of plain", "peak GB", "plain"]
    print(tabulate(lines, headers, tablefmt="github", disable_numparse=True), flush=True)


def _of(ratio: dict[str, Any]) -> str:
    """A mean ratio, and the smallest and largest of several."""
    each = ratio["each"]
    return f"{ratio['mean']:.4f}" + (f" ({min(each):.4f} to {max(each):.4f})" if len(each) > 1 else "")


def _print_grown(grown: list[dict[str, Any]]) -> None:
    lines = [
        [
            row["layers"],
            row["width"],
            f"{row['model_bytes'] / 1e6:.0f}",
            f"{row['seconds']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{(row['peak_bytes'] - row['peak_bytes_before']) / 1e6:.0f}",
        ]
        for row in grown
    ]
    headers = ["layers", "width", "model MB", "seconds", "peak MB", "of it for the work"]
    print(f"\n{tabulate(lines, headers, tablefmt='github', disable_numparse=True)}")


if __name__ == "__main__":
    sys.exit(main())
