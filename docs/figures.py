"""Write the measured tables of the documents from results/: `python docs/figures.py [--check]`."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MACHINES = ("cpu-2core-zen4", "cpu-2core-amx")  # measured last at first
MARK = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> list[dict]:
    """The committed results of that name, the machine that was measured last at first."""
    paths = [ROOT / "results" / machine / f"{name}.json" for machine in MACHINES]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def each(name: str, table: Callable[[dict], str]) -> str:
    """One table a machine."""
    return "\n\n".join(map(table, load(name)))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def compare(document: dict) -> str:
    lines = [
        f"{document['model']}, {document['context']:,} tokens, {document['dtype']}, "
        f"{document['threads']} threads, {document['machine']}:",
        "",
        "| method | prefill | decode | density | perplexity | KL | passkeys |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        keys = row["passkey"] or {"found": "-", "asked": "-"}
        lines.append(
            f"| {row['method']} | {row['prefill_seconds']:.1f} s ({row['prefill_speedup']:.2f}x) "
            f"| {row['decode_ms_per_token']:.0f} ms ({row['decode_speedup']:.2f}x) "
            f"| {percent(row['density'])} | {row['perplexity']:.2f} | {max(0.0, row['kl']):.3f} "
            f"| {keys['found']}/{keys['asked']} |"
        )
    peak = document["peak_rss_bytes"] / 2**30
    stock, dense = (
        next(row for row in document["rows"] if row["method"] == name)
        for name in ("stock", "dense")
    )
    read = [row["weight_bytes_read_per_token"] / 2**20 for row in (stock, dense)]
    floors = [row["decode_floor_ms"] for row in (stock, dense)]
    lines += [
        "",
        f"Times in brackets against stock. With an empty cache a token takes {floors[1]:.0f} ms, "
        f"of stock {floors[0]:.0f}: all rows but stock decode Llama blocks natively, from "
        f"{read[1]:.0f} MiB of weights that give back every number of {read[0]:.0f} MiB of "
        f"float32. Peak memory of the run: {peak:.1f} GiB.",
    ]
    return "\n".join(lines)


def headline() -> str:
    compared, pruned = load("compare")[0], load("reproduce/dsnot")[0]
    rows = {row["method"]: row for row in compared["rows"]}
    stock, dense = rows.pop("stock"), rows.pop("dense")
    kept = [
        row
        for row in rows.values()
        if row["perplexity"] <= 1.03 * stock["perplexity"]
        and row["passkey"]["found"] >= dense["passkey"]["found"]
    ]
    best = max(kept or rows.values(), key=lambda row: row["prefill_speedup"])
    packed = next(c for c in pruned["claims"] if "packed" in c["claim"])
    (whole,) = re.findall(r"nothing pruned, packed ([\d.]+)", packed["setting"])
    gains = [packed["baseline"] / ms for ms in (packed["ours"], float(whole))]
    return (
        f"Measured on {compared['machine']}: **{best['method']} prefills "
        f"{best['prefill_speedup']:.1f}x and decodes {best['decode_speedup']:.1f}x as fast as "
        "stock transformers** on an 8k-token document, "
        f"at a perplexity of {best['perplexity']:.2f} against {stock['perplexity']:.2f} dense; "
        f"with nothing skipped, our kernels decode it {dense['decode_speedup']:.1f}x as fast. "
        f"Pruned to density 0.3 and packed, that model decodes a short text {gains[0]:.1f}x as "
        "fast as the faster of stock float32 and bfloat16; packed with nothing pruned, "
        f"{gains[1]:.1f}x"
        + (f" ({pruned['machine']})." if pruned["machine"] != compared["machine"] else ".")
    )


def kernels(document: dict) -> str:
    lines = [
        f"{document['threads']} threads, {document['machine']}, medians of "
        f"{document['repeats']} interleaved rounds:",
        "",
        "| kernel | density | time | against | ratio | bar |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["figures"]:
        lines.append(
            f"| {row['name']} | {row['density']:.3f} | {row['milliseconds']:.1f} ms "
            f"| {row['baseline_milliseconds']:.1f} ms | {row['ratio']:.2f} ± {row['spread']:.2f} "
            f"| {bar(row)} |"
        )
    return "\n".join(lines)


def weights(document: dict) -> str:
    lines = [
        f"{document['threads']} thread{'s'[: document['threads'] - 1]}, {document['machine']}, "
        f"medians of {document['repeats']} interleaved rounds:",
        "",
        "| measured, against | density | ratio | bar |",
        "|---|---|---|---|",
    ]
    for row in document["figures"]:
        lines.append(
            f"| {row['name']} | {row['density']:.2f} | {row['ratio']:.2f} ± "
            f"{row['spread']:.2f} | {bar(row)} |"
        )
    return "\n".join(lines)


def bar(row: dict) -> str:
    """Return what a ratio is to reach, and whether it missed it."""
    if row["bar"] is None:
        return "-"
    return f"{row['bar']:.2f}" + ("" if row["holds"] else " (missed)")


def worded(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def claims() -> str:
    slugs = sorted({path.stem for path in (ROOT / "results").glob("*/reproduce/*.json")})
    return "\n\n".join(each(f"reproduce/{slug}", evidence) for slug in slugs)


def evidence(document: dict) -> str:
    held = sum(claim["holds"] for claim in document["claims"])
    lines = [
        f"**{document['slug']}**: {held} of {len(document['claims'])} claims hold "
        f"({document['scale']}, {document['device']}, {document['threads']} threads, "
        f"{document['seconds']:.0f} s, {document['machine']})",
        "",
        "| claim | paper | baseline | ours | criterion | holds |",
        "|---|---|---|---|---|---|",
    ]
    for claim in document["claims"]:
        figures = (worded(claim[name]) for name in ("paper", "baseline", "ours"))
        cells = (claim["claim"], *figures, claim["criterion"])
        verdict = "yes" if claim["holds"] else "**no**"
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} | {verdict} |")
    return "\n".join(lines)


def training(document: dict) -> str:
    lines = [
        f"MLP of {' - '.join(map(str, document['network']))}, batch {document['batch']}, density "
        f"{document['density']}, {document['threads']} threads, {document['machine']}; medians of "
        f"{document['rounds']} interleaved rounds of {document['steps']} whole steps:",
        "",
        "| method | a step | against dense | bar | accuracy | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["figures"]:
        bar = f"{row['bar']:.2f}{'' if row['holds'] else ' (missed)'}" if row["bar"] else "-"
        lines.append(
            f"| {row['name']} | {row['milliseconds']:.1f} ms | {row['ratio']:.2f} ± "
            f"{row['spread']:.2f} | {bar} | {percent(row['accuracy'])} | {row['parameters']:,} |"
        )
    return "\n".join(lines)


SECTIONS = {
    "headline": headline,
    "compare": lambda: each("compare", compare),
    "kernels": lambda: each("attention", kernels),
    "training": lambda: each("training", training),
    "weights": lambda: each("weights-1-thread", weights) + "\n\n" + each("weights", weights),
    "claims": claims,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a document is out of date")
    check = parser.parse_args().check
    unlisted = {path.name for path in (ROOT / "results").iterdir()} - {*MACHINES}
    if unlisted:
        sys.exit(f"results of machines that MACHINES does not list: {', '.join(sorted(unlisted))}")
    for document in DOCUMENTS:
        text = document.read_text()
        fresh = MARK.sub(lambda m: f"{m[1]}{SECTIONS[m[2]]()}\n{m[3]}", text)
        if check and fresh != text:
            sys.exit(f"{document.name} is out of date: run python docs/figures.py")
        document.write_text(fresh)


if __name__ == "__main__":
    main()
