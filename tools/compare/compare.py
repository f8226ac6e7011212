"""Training speed and memory of Krait and of its rivals at the same configurations, on this machine, in the same run.

Each rival stays in a process of its own and takes turns with Krait, step by step and thread count by thread count, so
that whatever else the machine does meets both. First the losses of the same weights on the same batch are compared where
the mathematics is the same. Results go to a JSON file; report.py makes docs/benchmarks.md of it.

    python compare.py --krait ../../build/krait                 # everything, an hour
    python compare.py --only-krait                              # Krait again; rivals as they are in the file
    python compare.py --shape S --rival mambapy --heap kept     # a part; the rest stays as it is in the file
"""
import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import rivals  # noqa: E402
from common import HEAPS, environment, lock, read, write  # noqa: E402

LOSS_TOLERANCE = 1e-4
PATIENCE = 600  # seconds, for what is not measured


def spread(values):
    """Median, p10 and p90 as Krait's own benchmarks have them."""
    ordered = sorted(values)
    n = len(ordered)
    return {"median": statistics.median(ordered), "p10": ordered[n // 10], "p90": ordered[n - 1 - n // 10], "n": n}


class WorkerEnded(Exception):
    """A rival's process ended by itself; the last line that it wrote."""


class Worker:
    """A rival's process. Gives None where it takes longer than its limit, and is dead then."""

    def __init__(self, args, rival, shape, heap, dump):
        command = [sys.executable, str(HERE / "worker.py"), rival, shape, dump]
        if args.realtime:
            command.append("--realtime")
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, env=environment(max(args.threads), heap))

    def read(self, limit):
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        if not ready:
            self.process.kill()
            return None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            text = self.log.read()
            print(text[-3000:], file=sys.stderr)
            raise WorkerEnded(text.strip().splitlines()[-1] if text.strip() else f"status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line, limit):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read(limit)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def krait_config(shape, directory):
    """krait.yaml with one model of that configuration, called `rival`."""
    path = pathlib.Path(directory) / "krait.yaml"
    heads = f", headdim: {shape.headdim}" if shape.headdim else ""
    path.write_text(f"models:\n  rival: {{layer: {shape.layer}, d_model: {shape.d_model}, n_layer: {shape.layers}, "
                    f"d_state: {shape.d_state}, vocab_size: {shape.vocab}{heads}}}\n")
    return str(path)


def krait(args, shape, config, threads, repeat, *more):
    command = [args.krait, "bench", "model", "rival", "--config", config, "--batch-size", str(shape.batch), "--seq-len",
               str(shape.length), "--threads", str(threads), "--repeat", str(repeat), "--json", *more]
    if args.realtime:
        command = ["chrt", "-f", "10", *command]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout)


def krait_turn(args, shape, config, threads, runs):
    with lock(args.lock):
        record = krait(args, shape, config, threads, args.krait_steps)
    runs.setdefault(str(threads), []).append(record)


def summarise_krait(runs, tokens):
    """The median of the runs' medians; the range over all runs' ranges."""
    out = {}
    for threads, records in runs.items():
        out[threads] = {"tokens_per_second": tokens / statistics.median(r["seconds"] for r in records),
                        "p10": tokens / max(r["p90"] for r in records), "p90": tokens / min(r["p10"] for r in records),
                        "n": len(records), "peak_bytes": max(r["memory_resident"] for r in records),
                        "planned_bytes": records[0]["memory_planned"], "params": records[0]["params"]}
    return out


def measure_rival(args, name, shape_name, heap, config, dump, krait_runs):
    rival, shape = rivals.RIVALS[name], rivals.SHAPES[shape_name]
    tokens = shape.batch * shape.length
    worker = Worker(args, name, shape_name, heap, dump)
    result = {"title": rival.title, "package": rival.package, "heap": heap, "threads": {}}
    spent = 0.0  # seconds in steps; waiting for a turn does not count against the limit
    try:
        hello = worker.read(PATIENCE)
        if hello is None:
            return result | {"failed": f"not there within {PATIENCE} s"}
        result["params"] = hello["params"]
        if rival.same:
            answer = worker.ask("loss", PATIENCE)
            if answer is None:
                return result | {"failed": f"no loss within {PATIENCE} s"}
            result["loss"] = answer["loss"]
            if abs(answer["loss"] - args.loss) > LOSS_TOLERANCE:
                raise SystemExit(f"{rival.title}, {shape_name}: loss {answer['loss']:.7f}, Krait {args.loss:.7f}: not the "
                                 f"same mathematics")
        first = None
        times = {t: [] for t in args.threads}
        peak = 0
        for number in range(args.rounds + 1):
            for threads in reversed(args.threads) if number == 0 else args.threads:
                if number == 0 and first is not None:
                    continue  # one warm-up is enough
                if number > 0 and times[threads] and spent > rival.limit:
                    continue
                # The first one is not counted. Where it compiles it takes minutes, and needs no peace for that.
                compiles = number == 0 and rival.compiles
                with lock(None if compiles else args.lock):
                    answer = worker.ask(f"{'warm' if compiles else 'step'} {threads} 1",
                                        600 if compiles else args.step_limit)
                if answer is None:
                    result["failed"] = f"a step takes more than {args.step_limit} s"
                    return result
                peak = answer["peak_bytes"]
                if number == 0:
                    first = answer["seconds"][0]
                    result["first_step_seconds"] = first
                    continue
                times[threads] += answer["seconds"]
                spent += sum(answer["seconds"])
                krait_turn(args, shape, config, threads, krait_runs)
        for threads, seconds in times.items():
            s = spread(seconds)
            result["threads"][str(threads)] = {"tokens_per_second": tokens / s["median"], "p10": tokens / s["p90"],
                                               "p90": tokens / s["p10"], "n": s["n"]}
        result["peak_bytes"] = peak
    except WorkerEnded as e:
        return result | {"failed": f"its process ended: {e}"}
    finally:
        worker.close()
    return result


def machine(args):
    with lock(args.lock):
        command = [args.krait, "bench", "machine", "--json"]
        done = subprocess.run((["chrt", "-f", "10"] if args.realtime else []) + command, env=environment(1),
                              capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    record["kernel"] = f"{platform.system()} {platform.release()}"
    record["python"] = platform.python_version()
    return record


def versions():
    names = ("torch", "transformers", "mambapy", "minimamba", "numpy")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def parse():
    root = HERE.parent.parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--krait", default=str(root / "build" / "krait"), help="the program (default build/krait)")
    p.add_argument("--results", type=pathlib.Path, default=root / "docs" / "benchmarks" / "training.json")
    p.add_argument("--shape", action="append", choices=rivals.SHAPES, help="default: all")
    p.add_argument("--rival", action="append", choices=rivals.RIVALS, help="default: all")
    p.add_argument("--heap", action="append", choices=HEAPS, help="default: all")
    p.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    p.add_argument("--rounds", type=int, default=3, help="turns of each thread count (default 3)")
    p.add_argument("--krait-steps", type=int, default=10, help="steps of Krait in a turn (default 10)")
    p.add_argument("--step-limit", type=float, default=120, help="seconds after which a rival's step is given up")
    p.add_argument("--only-krait", action="store_true", help="measure Krait alone; keep the rivals of the file")
    p.add_argument("--lock", help="a lock file to hold during each turn")
    p.add_argument("--realtime", action="store_true", help="real-time priority during each turn (root)")
    args = p.parse_args()
    args.threads = sorted(args.threads or [1, 2])
    return args


def main():
    args = parse()
    results = read(args.results)
    import safetensors
    for shape_name in args.shape or rivals.SHAPES:
        shape = rivals.SHAPES[shape_name]
        entry = results["shapes"].setdefault(shape_name, {"rivals": {}})
        entry["configuration"] = vars(shape)
        krait_runs = {}
        with tempfile.TemporaryDirectory() as directory:
            config, dump = krait_config(shape, directory), os.path.join(directory, "start.safetensors")
            krait(args, shape, config, max(args.threads), 3, "--dump", dump)
            with safetensors.safe_open(dump, "np") as file:
                args.loss = float(file.get_tensor("loss")[0])
            entry["loss"] = args.loss
            for name, rival in rivals.RIVALS.items():
                if args.only_krait or shape_name not in rival.shapes or (args.rival and name not in args.rival):
                    continue
                for heap in args.heap or HEAPS:
                    before = time.monotonic()
                    result = measure_rival(args, name, shape_name, heap, config, dump, krait_runs)
                    entry["rivals"][f"{name}/{heap}"] = result
                    write(args.results, results)
                    rates = {t: round(r["tokens_per_second"]) for t, r in result["threads"].items()}
                    print(f"{shape_name} {name} {heap}: {rates or result.get('failed')} tokens/s, "
                          f"{time.monotonic() - before:.0f} s", flush=True)
            if args.only_krait or not krait_runs:
                for _ in range(args.rounds):
                    for threads in args.threads:
                        krait_turn(args, shape, config, threads, krait_runs)
        entry["krait"] = summarise_krait(krait_runs, shape.batch * shape.length)
        print(f"{shape_name} krait:", {t: round(r["tokens_per_second"]) for t, r in entry["krait"].items()}, flush=True)
        results["versions"] = versions()
        results["date"] = datetime.date.today().isoformat()
        results["machine"] = machine(args)
        write(args.results, results)


if __name__ == "__main__":
    main()
