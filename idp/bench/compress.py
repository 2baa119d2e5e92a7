"""`python -m idp.bench.compress`: our compression against llmcompressor called plainly, and how it grows.

Two tables. The first runs each compressor twice on the same calibration blocks, by this project and by llmcompressor's
own recipe, and compares perplexity and seconds; where it prunes and quantises also a third time, with llmcompressor's
GPTQ and the mask applied again after each layer. The second compresses Llama models of random weights, and shows how
seconds and peak memory grow with layers and width. Each figure comes from a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from idp.bench.compress_jobs import in_its_own_process

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
    grown += [_grow(options.layers[0], width, options) for width in options.widths[1:]]
    _print_grown(grown)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    about = {key: value for key, value in vars(options).items() if key != "output"}
    write_json(options.output, {"options": about, "compared": compared, "grown": grown})
    print(f"\nwritten: {options.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m idp.bench.compress", description=__doc__.split("\n")[0])
    parser.add_argument("--compressors", nargs="*", default=COMPRESSORS, help="names of conf/compressor")
    parser.add_argument("--model", default="smollm2_135m", help="the model of the first table")
    parser.add_argument("--corpus", help="calibration text, as compressor.calibration.corpus; default: embedded")
    parser.add_argument("--perplexity", default="corpus", help="a corpus by name, or a text file")
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 tokens scored, at most")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the first table, ways interleaved")
    parser.add_argument("--samples", type=int, default=128, help="calibration sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--grow", default="gptq4", help="the compressor of the second table")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16], help="at the first width")
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
    rounds = [
        {way: in_its_own_process({**job, "way": way}) for way in ("ours", "plain")} for _ in range(options.rounds)
    ]
    ours, plain = rounds[0]["ours"], rounds[0]["plain"]
    after = in_its_own_process({**job, "way": "mask_after"}) if name in JOINT else None
    return {
        "compressor": name,
        "mask_after": after,
        "perplexity_ratio": ours["perplexity"] / plain["perplexity"],
        "seconds_ratio": statistics.median(pair["ours"]["seconds"] / pair["plain"]["seconds"] for pair in rounds),
        "rounds": rounds,
    }


def _grow(layers: int, width: int, options: argparse.Namespace) -> dict[str, Any]:
    job = {"kind": "grow", "overrides": [f"compressor={options.grow}", "model=tiny_llama"]}
    job |= {"samples": options.samples, "length": options.length, "layers": layers, "width": width}
    return {"layers": layers, "width": width, **in_its_own_process(job)}


def _print_compared(compared: list[dict[str, Any]]) -> None:
    lines = []
    for row in compared:
        ours, plain = row["rounds"][0]["ours"], row["rounds"][0]["plain"]
        lines.append(
            [
                row["compressor"],
                f"{ours['perplexity']:.3f}",
                f"{plain['perplexity']:.3f}",
                f"{row['perplexity_ratio']:.4f}",
                f"{row['mask_after']['perplexity']:.3f}" if row["mask_after"] else "",
                f"{ours['sparsity']:.3f}",
                f"{plain['sparsity']:.3f}",
                f"{ours['seconds']:.1f}",
                f"{row['seconds_ratio']:.2f}",
                f"{ours['peak_bytes'] / 1e9:.2f}",
                f"{plain['peak_bytes'] / 1e9:.2f}",
            ]
        )
    headers = [
        "compressor",
        "perplexity",
        "plain",
        "ratio",
        "mask after",
        "least sparse layer",
        "plain",
        "seconds",
        "of plain",
    ]
    print(tabulate(lines, [*headers, "peak GB", "plain"], tablefmt="github", disable_numparse=True), flush=True)


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
