"""Writes the measured sections of docs/benchmarks.md and the charts beside it, from what measure.py and compare.py left
in docs/benchmarks/. What stands outside of the markers <!-- measured: NAME --> ... <!-- end: NAME --> is hand-written and
stays; sections without results stay as they are.

    python report.py            # docs/benchmarks.md
    python report.py --check    # 1 when it is not what the results say
"""
import argparse
import pathlib
import re
import sys
import xml.etree.ElementTree

import charts
from common import read

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHAPE_TITLES = {
    "S": "Mamba-1, {params} parameters (vocabulary {vocab}, d_model {d_model}, {layers} layers, d_state {d_state}), batch "
         "{batch} x {length} tokens",
    "S2": "Mamba-2, {params} parameters (vocabulary {vocab}, d_model {d_model}, {layers} layers, headdim {headdim}, "
          "d_state {d_state}), batch {batch} x {length} tokens",
    "M": "Mamba-1, {params} parameters (vocabulary {vocab}, d_model {d_model}, {layers} layers, d_state {d_state}), batch "
         "{batch} x {length} tokens: the shape of MiniMamba's README",
}


def table(head, rows, right=()):
    """right: numbers of the columns that are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---:" if k in right else "---" for k in range(len(head))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def figure(value, digits=3):
    """Three significant digits, no exponent: 0.114, 12.3, 27,000."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** digits:
        step = 10 ** (len(f"{abs(value):.0f}") - digits)
        return f"{round(value / step) * step:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 else f"{value:.2g}"


def ms(seconds):
    return figure(seconds * 1e3)


def size(count):
    return f"{count / 1e6:.2f} M" if count < 1e7 else f"{count / 1e6:.1f} M"


def gigabytes(count):
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def row_of(record, name):
    return next((r for r in record["rows"] if r["name"] == name), None)


# Sections: each gives markdown, or None where there are no results. ------------------------------------------------


def machine_section(own, _):
    records = own.get("groups", {}).get("machine")
    if not records:
        return None
    r = records[0]
    text = [f"{r['cpu']}, {r['cpus']} processors; best kernels {r['isa']}; OpenBLAS core {r['blas_core']} "
            f"(`OPENBLAS_CORETYPE` and `OPENBLAS_L2_SIZE` unset). Measured {own['date']}."]
    if r.get("blas_warning"):
        text.append(f"**{r['blas_warning']}**")
    names = []
    for row in r["rows"]:
        name = row["name"].rsplit(", ", 1)[0]
        if name not in names:
            names.append(name)
    rows = []
    units = {"FLOP/s": "GFLOP/s", "B/s": "GB/s", "exp/s": "G/s"}
    for name in names:
        cells = []
        for threads in ("1 thread", f"{r['threads']} threads"):
            row = row_of(r, f"{name}, {threads}")
            cells.append(f"{figure(row['best'] / 1e9)} {units[row['unit']]}" if row else "")
        rows.append([name, *cells])
    text.append("    krait bench machine")
    text.append(table(["limit (best of seven rounds)", "1 thread", f"{r['threads']} threads"], rows, (1, 2)))
    return "\n\n".join(text)


def ops_section(own, _):
    groups = own.get("groups", {})
    if not groups.get("ops-1"):
        return None
    text = ["    krait bench op all --threads 1", "    krait bench op all --threads 2"]
    two = groups["ops-2"][0] if groups.get("ops-2") else None
    rows = []
    for row in groups["ops-1"][0]["rows"]:
        other = row_of(two, row["name"]) if two else None
        rate = (f"{figure(row['ns_per_state'])} ns" if "ns_per_state" in row else
                f"{figure(row['flops_per_second'] / 1e9)} GFLOP/s" if row["roof"] == "arithmetic" else
                f"{figure(row['bytes_per_second'] / 1e9)} GB/s")
        rows.append([row["op"], ms(row["median"]), rate, row["roof"], f"{100 * row['share_of_roof']:.0f} %",
                     ms(other["median"]) if other else "", f"{100 * other['share_of_roof']:.0f} %" if other else ""])
    parts = ["\n".join(text), "Default samples. ns: per token, channel and state.",
             table(["op", "ms, 1 thread", "rate", "roof", "share", "ms, 2 threads", "share"], rows, (1, 2, 4, 5, 6))]
    return "\n\n".join(parts)


def large_section(own, _):
    groups = own.get("groups", {})
    if not groups.get("large-1"):
        return None

    def find(group, name):
        return next((r["rows"][0] for r in groups.get(group, []) if r["rows"][0]["op"] == name), None)

    rows = []
    for record in groups["large-1"]:
        one = record["rows"][0]
        two, avx2 = find("large-2", one["op"]), find("avx2", one["op"])
        rows.append([one["op"], ms(one["median"]), f"{figure(one['ns_per_state'])}" if "ns_per_state" in one else "",
                     f"{100 * one['share_of_roof']:.0f} % ({one['roof']})", ms(two["median"]) if two else "",
                     f"{one['median'] / two['median']:.2f}" if two else "",
                     f"{avx2['median'] / one['median']:.2f}" if avx2 else ""])
    shapes = ("selective_scan: D 1,536, N 16, L 2,048; ssd_scan and trapezoid_scan: P 64, H 24, N 128, L 2,048; attention: 12 "
              "heads of 64, L 2,048; matmul: 2,048 x 768 by 768 x 3,072.")
    return "\n\n".join(["    krait bench op NAME --sample large --threads 1", shapes,
                        table(["op", "ms, 1 thread", "ns per token, channel, state", "of roof", "ms, 2 threads",
                               "2 threads / 1", "AVX2 / AVX-512 time"], rows, (1, 2, 3, 4, 5, 6))])


def models_section(own, _):
    groups = own.get("groups", {})
    if not groups.get("models-1") and not groups.get("models-2"):
        return None
    rows, profiles = [], []
    for threads in (2, 1):
        for r in groups.get(f"models-{threads}", []):
            rate = r["batch_size"] * r["seq_len"]
            rows.append([r["model"], threads, f"{figure(r['tokens_per_second'])} ({figure(rate / r['p90'])} to "
                         f"{figure(rate / r['p10'])})", ms(r["seconds"]), ms(r["floor_seconds"]),
                         f"{100 * r['floor_seconds'] / r['seconds']:.0f} %", gigabytes(r["memory_planned"]),
                         gigabytes(r["memory_resident"])])
            if threads == 2:
                parts = sorted((x for x in r["rows"][1:]), key=lambda x: -x["median"])[:8]
                total = sum(x["median"] for x in r["rows"][1:])
                profiles.append(f"{r['model']}, two threads, op by op (`krait bench model {r['model']}` prints all):\n\n" + table(
                    ["op", "calls", "ms", "share", "floor, ms", "of roof"],
                    [[x["op"], x["calls"], ms(x["median"]), f"{100 * x['median'] / total:.0f} %", ms(x["floor_seconds"]),
                      f"{100 * x['share_of_roof']:.0f} %"] for x in parts], (1, 2, 3, 4, 5)))
    for r in groups.get("130m", []):
        rows.append([f"{r['model']} ({r['batch_size']} x {r['seq_len']:,})", r["threads"], figure(r["tokens_per_second"]),
                     ms(r["seconds"]), ms(r["floor_seconds"]), f"{100 * r['floor_seconds'] / r['seconds']:.0f} %",
                     gigabytes(r["memory_planned"]), gigabytes(r["memory_resident"])])
    return "\n\n".join(["    krait bench model NAME --threads T",
                        "A training step: forward, backward, clipping and AdamW, in f32. The floor is the sum of what each op "
                        "would take at its roof.",
                        table(["model", "threads", "tokens/s (p10 to p90)", "ms a step", "floor, ms", "of roof", "planned",
                               "resident"], rows, (1, 2, 3, 4, 5, 6, 7)), *profiles])


def decode_section(own, _):
    rows = []
    for threads in (1, 2):
        for r in own.get("groups", {}).get(f"decode-{threads}", []):
            x = r["rows"][0]
            rows.append([x["name"], threads, f"{figure(x['tokens_per_second'])} ({figure(1 / x['p90'])} to {figure(1 / x['p10'])})",
                         f"{x['weight_bytes'] / 2**20:,.0f} MiB", f"{figure(x['weight_bytes_per_second'] / 1e9)} GB/s",
                         f"{figure(x['dram_bytes_per_second'] / 1e9)} GB/s", f"{100 * x['share_of_dram']:.0f} %"])
    if not rows:
        return None
    return "\n\n".join(["    krait bench decode NAME --threads T",
                        table(["model", "threads", "tokens/s (p10 to p90)", "weights a token", "weights stream at", "memory reads at",
                               "share"], rows, (1, 2, 3, 4, 5, 6))])


def shapes_of(training):
    """Those that Krait was measured at, in our order."""
    shapes = training.get("shapes", {})
    return {k: shapes[k] for k in SHAPE_TITLES if shapes.get(k, {}).get("krait")}


def training_section(_, training):
    shapes = shapes_of(training)
    if not shapes:
        return None
    v = ", ".join(f"{k} {x}" for k, x in training["versions"].items())
    parts = [f"Measured {training['date']} with {v}; Python {training['machine']['python']}. Rivals are measured with glibc's heap "
             "as it is and kept (`MALLOC_MMAP_MAX_=0`), with one thread and two; the better thread count stands here. \"n\" is "
             "the number of steps: slow rivals get few."]
    for key, entry in shapes.items():
        c = entry["configuration"]
        best = max(entry["krait"].items(), key=lambda item: item[1]["tokens_per_second"])
        params = size(best[1]["params"])
        rows = []
        for threads, r in sorted(entry["krait"].items(), key=lambda item: -item[1]["tokens_per_second"]):
            rows.append(["**Krait**", "", threads, f"**{figure(r['tokens_per_second'])}** ({figure(r['p10'])} to {figure(r['p90'])})",
                         r["n"], gigabytes(r["peak_bytes"]), f"{entry['loss']:.5f}", ""])
        for name, r in entry["rivals"].items():
            if not r["threads"]:
                rows.append([r["title"], r["heap"], "", r.get("failed", ""), "", "", "", ""])
                continue
            threads, t = max(r["threads"].items(), key=lambda item: item[1]["tokens_per_second"])
            rows.append([r["title"], r["heap"], threads, f"{figure(t['tokens_per_second'])} ({figure(t['p10'])} to {figure(t['p90'])})",
                         t["n"], gigabytes(r["peak_bytes"]), f"{r['loss']:.5f}" if "loss" in r else "other mathematics",
                         f"{figure(best[1]['tokens_per_second'] / t['tokens_per_second'])} x"])
        parts.append("### " + SHAPE_TITLES[key].format(params=params, **c))
        parts.append(table(["", "heap", "threads", "tokens/s (p10 to p90)", "n", "peak resident", "first loss", "Krait is faster by"],
                           rows, (2, 3, 4, 5, 6, 7)))
        parts.append(f"![tokens per second](benchmarks/training-{key}.svg)")
    return "\n\n".join(parts)


def scaling_section(own, _):
    groups = own.get("groups", {})
    lengths = {k.split()[1]: v for k, v in groups.items() if k.startswith("length ")}
    if not lengths:
        return None
    some = next(iter(lengths.values()))
    rows = []
    for name, records in lengths.items():
        per = [r["seconds"] / (r["batch_size"] * r["seq_len"]) * 1e6 for r in records]
        memory = [r["memory_resident"] / (r["batch_size"] * r["seq_len"]) for r in records]
        rows.append([name, "µs", *[figure(x) for x in per], f"{100 * (max(per) / min(per) - 1):.0f} %"])
        rows.append([name, "bytes", *[f"{x:,.0f}" for x in memory], f"{100 * (max(memory) / min(memory) - 1):.0f} %"])
    parts = ["    krait bench model NAME --seq-len L --batch-size B",
             "Time and resident memory of a training step per token, two threads, 65,536 tokens a step whatever the length:",
             table(["model", "per token", *[f"L {r['seq_len']:,}" for r in some], "most over least"], rows, range(2, 3 + len(some))),
             "![time per token against length](benchmarks/length.svg)"]
    if groups.get("batch"):
        parts.append("A step of mamba1-1m, and of models that differ from it in one size:\n\n"
                     "![a step against batch, width and depth](benchmarks/sizes.svg)")
    return "\n\n".join(parts)


SECTIONS = {"machine": machine_section, "training": training_section, "models": models_section, "ops": ops_section,
            "large": large_section, "decode": decode_section, "scaling": scaling_section}


def pictures(own, training):
    """file name -> SVG text"""
    out = {}
    for key, entry in shapes_of(training).items():
        rows = [(f"Krait, {t} thread{'s' if t != '1' else ''}", r["tokens_per_second"], r["p10"], r["p90"], True)
                for t, r in entry["krait"].items()]
        for r in entry["rivals"].values():
            if r["threads"]:
                threads, t = max(r["threads"].items(), key=lambda item: item[1]["tokens_per_second"])
                rows.append((f"{r['title']}, {r['heap']} heap", t["tokens_per_second"], t["p10"], t["p90"], False))
        rows.sort(key=lambda row: -row[1])
        c = entry["configuration"]
        out[f"training-{key}.svg"] = charts.bars(
            f"Training, {'Mamba-2' if c['layer'] == 'mamba2' else 'Mamba-1'}, d_model {c['d_model']}, {c['layers']} layers, "
            f"batch {c['batch']} x {c['length']}", "tokens/s", rows)
    groups = own.get("groups", {})
    lengths = {k.split()[1]: [(r["seq_len"], r["seconds"] / (r["batch_size"] * r["seq_len"]) * 1e6) for r in v]
               for k, v in groups.items() if k.startswith("length ")}
    if lengths:
        out["length.svg"] = charts.lines("Training time per token against length, 65,536 tokens a step", "tokens in a row",
                                         "µs per token", lengths)
    if all(groups.get(k) for k in ("batch", "width", "depth")):
        series = {"batch (8 is 1)": [(r["batch_size"] / 8, r["seconds"] * 1e3) for r in groups["batch"]],
                  "d_model (160 is 1)": [(int(r["model"].split("-")[1]) / 160, r["seconds"] * 1e3) for r in groups["width"]],
                  "layers (5 is 1)": [(int(r["model"].split("-")[1]) / 5, r["seconds"] * 1e3) for r in groups["depth"]]}
        out["sizes.svg"] = charts.lines("A training step against one size of mamba1-1m", "times the size of mamba1-1m", "ms a step",
                                        series)
    return out


def fill(page, own, training):
    """The page with every section that has results written anew."""
    for name, section in SECTIONS.items():
        text = section(own, training)
        if text is None:
            continue
        pattern = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end: {name} -->)", re.S)
        if not pattern.search(page):
            raise SystemExit(f"docs/benchmarks.md has no markers for {name}")
        page = pattern.sub(lambda m: m[1] + "\n" + text + "\n\n" + m[2], page)
    return page


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs")
    p.add_argument("--check", action="store_true")
    args = p.parse_args()
    folder, page = args.docs / "benchmarks", args.docs / "benchmarks.md"
    own, training = read(folder / "krait.json"), read(folder / "training.json")
    wanted = {page: fill(page.read_text(), own, training)}
    wanted |= {folder / name: text for name, text in pictures(own, training).items()}
    for path, text in wanted.items():
        if path.suffix == ".svg":
            xml.etree.ElementTree.fromstring(text)  # fails loudly on what no browser would show
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if args.check:
        for path in stale:
            print(f"{path} is not what the results say: run tools/compare/report.py", file=sys.stderr)
        raise SystemExit(1 if stale else 0)
    for path in stale:
        path.write_text(wanted[path])
        print(path)


if __name__ == "__main__":
    main()
