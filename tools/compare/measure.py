"""Krait's own benchmarks: machine, every op, models, decode, and how cost grows. Records go to one JSON file.

    python measure.py --krait ../../build/krait                    # everything, some 5 minutes
    python measure.py --only ops-1 --only machine                  # a part; the rest stays as it is in the file
"""
import argparse
import datetime
import json
import pathlib
import subprocess
import tempfile

from common import environment, lock, read, write

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = ("mamba1-1m", "mamba2-1m", "mamba3-1m")
LARGE = ("selective_scan", "selective_scan_grad", "ssd_scan", "ssd_scan_grad", "trapezoid_scan", "trapezoid_scan_grad",
         "attention", "attention_grad", "matmul")
LENGTHS, TOKENS = (256, 1024, 4096, 16384, 65536), 65536
WIDTHS, DEPTHS, BATCHES = (80, 160, 320, 640), (2, 5, 10, 20), (1, 2, 4, 8, 16, 32)


def sweep_config(directory):
    """krait.yaml with a model for each width (five layers) and depth (of width 160)."""
    path = pathlib.Path(directory) / "krait.yaml"
    rows = [f"  width-{d}: {{layer: mamba1, d_model: {d}, n_layer: 5, vocab_size: 256}}" for d in WIDTHS]
    rows += [f"  depth-{n}: {{layer: mamba1, d_model: 160, n_layer: {n}, vocab_size: 256}}" for n in DEPTHS]
    path.write_text("models:\n" + "\n".join(rows) + "\n")
    return str(path)


def commands(config):
    """group -> list of argument lists of `krait bench`."""
    groups = {"machine": [["machine"]]}
    for threads in (1, 2):
        t = ["--threads", str(threads)]
        groups[f"ops-{threads}"] = [["op", "all", *t]]
        groups[f"large-{threads}"] = [["op", op, "--sample", "large", "--repeat", "10", *t] for op in LARGE]
        groups[f"models-{threads}"] = [["model", m, *t] for m in MODELS]
        groups[f"decode-{threads}"] = [["decode", "mamba-130m", "--repeat", "40", *t]]
    groups["avx2"] = [["op", op, "--sample", "large", "--isa", "avx2", "--threads", "1", "--repeat", "10"] for op in LARGE]
    groups["130m"] = [["model", "mamba-130m", "--batch-size", "1", "--seq-len", "1024", "--repeat", "3"]]
    for m in MODELS:
        groups[f"length {m}"] = [["model", m, "--seq-len", str(n), "--batch-size", str(TOKENS // n), "--repeat", "3"]
                                 for n in LENGTHS]
    groups["batch"] = [["model", "mamba1-1m", "--batch-size", str(b), "--repeat", "10"] for b in BATCHES]
    groups["width"] = [["model", f"width-{d}", "--config", config, "--repeat", "10"] for d in WIDTHS]
    groups["depth"] = [["model", f"depth-{n}", "--config", config, "--repeat", "10"] for n in DEPTHS]
    return groups


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--krait", default=str(ROOT / "build" / "krait"), help="the program (default build/krait)")
    p.add_argument("--results", type=pathlib.Path, default=ROOT / "docs" / "benchmarks" / "krait.json")
    p.add_argument("--only", action="append", help="a group of measurements; several: once each")
    p.add_argument("--lock", help="a lock file to hold during each command")
    p.add_argument("--realtime", action="store_true", help="real-time priority (root)")
    args = p.parse_args()
    results = read(args.results)
    groups = results.setdefault("groups", {})
    results.pop("shapes", None)
    with tempfile.TemporaryDirectory() as directory:
        todo = commands(sweep_config(directory))
        unknown = set(args.only or ()) - set(todo)
        if unknown:
            raise SystemExit(f"no group {', '.join(sorted(unknown))}; there are {', '.join(todo)}")
        for group in args.only or todo:
            records = []
            for words in todo[group]:
                command = [args.krait, "bench", *words, "--json"]
                with lock(args.lock):
                    done = subprocess.run((["chrt", "-f", "10"] if args.realtime else []) + command,
                                          env=environment(2), capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
                records.append(json.loads(done.stdout))
                if group in ("batch", "width", "depth") or group.startswith("length"):
                    del records[-1]["rows"]  # only totals are shown of these
                records[-1]["words"] = " ".join(w.replace(directory + "/", "") for w in words)
            groups[group] = records
            results["date"] = datetime.date.today().isoformat()
            write(args.results, results)
            print(group, flush=True)


if __name__ == "__main__":
    main()
