"""One rival in a process of its own, told by lines on stdin what to do; answers are lines of JSON on stdout.

    loss               loss of the dumped weights on the dumped batch
    step THREADS N     N training steps (forward, backward, AdamW), seconds of each
    warm THREADS N     the same at normal priority
    quit

The process exists because the heap (MALLOC_MMAP_MAX_ and its kin) is chosen by the environment, and so that the peak
resident memory is this rival's alone.
"""
import argparse
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import rivals


def set_policy(realtime):
    """Real-time priority for every thread of this process while it is measured: other programs do not disturb it."""
    for thread in os.listdir("/proc/self/task"):
        try:
            if realtime:
                os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(10))
            else:
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
        except ProcessLookupError:
            pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rival", choices=rivals.RIVALS)
    parser.add_argument("shape", choices=rivals.SHAPES)
    parser.add_argument("dump")
    parser.add_argument("--realtime", action="store_true")
    args = parser.parse_args()
    rival, shape = rivals.RIVALS[args.rival], rivals.SHAPES[args.shape]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print as they like; only answers go to stdout

    tensors = load_file(args.dump)
    ids, targets = tensors["batch.tokens"].long(), tensors["batch.targets"].long()
    torch.manual_seed(0)
    model = rival.build(shape)
    if rival.same:
        rivals.load(model, rival, tensors)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    def loss_of():
        return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()
        return time.perf_counter() - start

    def answer(**what):
        with open("/proc/self/status") as status:  # getrusage would count whoever started this process
            peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        print(json.dumps(what | {"peak_bytes": peak}), file=answers, flush=True)

    answer(params=sum(p.numel() for p in model.parameters()))
    for line in sys.stdin:
        words = line.split()
        if words[0] == "quit":
            break
        if words[0] == "loss":
            with torch.no_grad():
                answer(loss=loss_of().item())
        elif words[0] in ("step", "warm"):
            torch.set_num_threads(int(words[1]))
            realtime = args.realtime and words[0] == "step"
            if realtime:
                set_policy(True)
            seconds = [step() for _ in range(int(words[2]))]
            if realtime:
                set_policy(False)
            answer(seconds=seconds)


if __name__ == "__main__":
    main()
