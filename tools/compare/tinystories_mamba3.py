#!/usr/bin/env python3
"""Learning curves side by side: Krait's mamba3-1m, and the same model written in PyTorch.

    python3 -m venv /tmp/compare && . /tmp/compare/bin/activate
    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install safetensors==0.8.0 numpy
    python3 tools/compare/tinystories_mamba3.py --text TEXT --krait build/krait

TEXT is any text; the curves in docs/benchmarks.md were made with the first 2 MiB of TinyStories (V2, GPT-4). Both sides
have the same architecture, the same initial parameters (Krait writes them, PyTorch reads them under their official
names), the same rows in the same order (Philox of seed and row), the same AdamW, clipping and schedule, and the same
held-out tenth, all of it. What differs is the code: Krait's chunked scan in C; here the quadratic form of the same sum
(Lahoti et al. 2026, "Mamba-3", arXiv:2603.15569) and autograd. Takes 10 to 40 minutes, almost all of it in PyTorch.
Writes curves.json, curves.md and curves.svg into --output.
"""
import argparse
import json
import math
import pathlib
import subprocess
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

D, LAYERS, N, P, S = 160, 5, 64, 32, 16  # d_model, n_layer, d_state, headdim, angles (rope_fraction 0.5)
E, H = 2 * D, 2 * D // P
BATCH, LENGTH, WARMUP, RATE, DECAY, BETAS, EPS, CLIP = 8, 256, 50, 3e-3, 0.1, (0.9, 0.95), 1e-8, 1.0


# The order of the data ------------------------------------------------------------------------------------------------
def philox(key, high, low):
    """Philox4x32-10 (Salmon et al. 2011): four words of counter (low, high) under a key."""
    x = [low & 0xFFFFFFFF, low >> 32, high & 0xFFFFFFFF, high >> 32]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [b >> 32 ^ x[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ x[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def row_start(seed, row, n):
    """Where row `row` of a run starts, below n: as tools/train/data.c chooses it."""
    words = philox(seed, 0x726F77, row)
    return ((words[1] << 32 | words[0]) * n) >> 64


# The model ------------------------------------------------------------------------------------------------------------
def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x, cos, sin):
    """Pairs (2j, 2j+1) of the first 2 S coordinates turn by their angle; the rest passes. x [B, L, H, N]."""
    a, b = x[..., 0 : 2 * S : 2], x[..., 1 : 2 * S : 2]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((turned, x[..., 2 * S :]), -1)


def mamba3(p, name, u):
    """One block: u [B, L, D] to [B, L, D]."""
    get = lambda key: p[f"{name}.mixer.{key}"]
    z, x, kn, qn, ddt, dda, trap, ang = (u @ get("in_proj.weight").T).split([E, E, N, N, H, H, H, S], -1)
    batch, length = u.shape[:2]
    dt = F.softplus(ddt + get("dt_bias"))
    # heavy tail; without the clamp autograd multiplies the other branch's 1 / 0 (at 1) by 0, which is not a number
    rate = torch.where(dda >= 0, dda + 1, 1 / (1 - dda.clamp(max=0)))
    adt = torch.clamp(-rate, max=-1e-4) * dt
    theta = torch.cumsum(math.pi * torch.tanh(ang)[:, :, None] * dt[..., None], 1) % (2 * math.pi)  # [B, L, H, S]
    cos, sin = theta.cos(), theta.sin()
    k = rotate(rms_norm(kn, get("B_norm.weight"))[:, :, None] + get("B_bias")[:, 0], cos, sin).transpose(1, 2)
    q = rotate(rms_norm(qn, get("C_norm.weight"))[:, :, None] + get("C_bias")[:, 0], cos, sin).transpose(1, 2)
    v = x.view(batch, length, H, P).transpose(1, 2)
    # o_t = sum_s<t exp(c_t - c_s) (gamma_s + omega_s+1) (q_t.k_s) v_s + gamma_t (q_t.k_t) v_t + D v_t
    dt, adt, lam = dt.transpose(1, 2), adt.transpose(1, 2), torch.sigmoid(trap).transpose(1, 2)  # [B, H, L]
    gamma, omega = lam * dt, (1 - lam) * dt
    weight = gamma + F.pad(omega[..., 1:], (0, 1))
    c = torch.cumsum(adt, -1)
    lower = torch.ones(length, length, dtype=torch.bool).tril()
    decay = torch.exp((c[..., :, None] - c[..., None, :]).masked_fill(~lower, -math.inf))
    eye = torch.eye(length, dtype=torch.bool)
    share = torch.where(eye, gamma[..., None, :], weight[..., None, :])
    o = (q @ k.transpose(-1, -2) * decay * share) @ v + get("D")[:, None, None] * v
    return (o.transpose(1, 2).reshape(batch, length, E) * F.silu(z)) @ get("out_proj.weight").T


def loss_of(p, tokens, targets):
    x = p["backbone.embedding.weight"][tokens]
    for layer in range(LAYERS):
        name = f"backbone.layers.{layer}"
        x = x + mamba3(p, name, rms_norm(x, p[f"{name}.norm.weight"]))
    logits = rms_norm(x, p["backbone.norm_f.weight"]) @ p["backbone.embedding.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rows_at(text, starts):
    rows = torch.from_numpy(np.stack([text[s : s + LENGTH + 1] for s in starts]).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def held_out(p, text, train):
    """Nats per byte over all windows of the held-out tenth."""
    windows, total = (len(text) - train - 1) // LENGTH, 0.0
    for first in range(0, windows, BATCH):
        starts = [train + w * LENGTH for w in range(first, min(first + BATCH, windows))]
        total += float(loss_of(p, *rows_at(text, starts))) * len(starts)
    return total / windows


def train_torch(initial, text, steps, every, seed):
    p = {name: value.clone().requires_grad_() for name, value in initial.items() if name != "lm_head.weight"}
    exempt = lambda n: n.endswith(("bias", ".D", "norm.weight", "norm_f.weight", "embedding.weight"))
    groups = [{"params": [v for n, v in p.items() if not exempt(n)], "weight_decay": DECAY},
              {"params": [v for n, v in p.items() if exempt(n)], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)
    train, curve, seconds = len(text) - len(text) // 10, [], 0.0
    for step in range(steps):
        lr = RATE * (step + 1) / WARMUP
        if step >= WARMUP:
            lr = RATE / 10 + 0.9 * RATE * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        start = time.time()
        loss = loss_of(p, *rows_at(text, [row_start(seed, BATCH * step + b, train - LENGTH) for b in range(BATCH)]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), CLIP)
        optimizer.step()
        seconds += time.time() - start
        if step == 0 or (step + 1) % every == 0:
            point = {"step": step + 1, "train": loss.item(), "held_out": held_out(p, text, train) if step else None}
            curve.append(point)
            speed = BATCH * LENGTH * (step + 1) / seconds
            print(f"PyTorch: {json.dumps(point)}, {speed:.0f} tokens/s", flush=True)
    return curve, BATCH * LENGTH * steps / seconds


# Krait ----------------------------------------------------------------------------------------------------------------
def run_krait(krait, text, folder, *options):
    command = [krait, "pretrain", "--model", "mamba3-1m", "--target", "local", "--", "--text-file", text,
               "--output-dir", folder, "--batch-size", BATCH, "--seq-len", LENGTH, "--save-every", 0, "--log-every", 1,
               *options]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def initial_parameters(krait, text, folder, seed):
    """What Krait draws: one step so small that it moves nothing, then its checkpoint."""
    run_krait(krait, text, folder, "--steps", 1, "--warmup", 0, "--learning-rate", 1e-30, "--min-learning-rate", 1e-30,
              "--weight-decay", 0, "--eval-batches", 1, "--seed", seed)
    return load_file(folder / "latest" / "model.safetensors")


def train_krait(krait, text, folder, steps, every, seed):
    metrics = run_krait(krait, text, folder, "--steps", steps, "--warmup", WARMUP, "--learning-rate", RATE,
                        "--weight-decay", DECAY, "--grad-clip", CLIP, "--eval-every", every, "--eval-batches", 0,
                        "--seed", seed)
    curve = [{"step": m["step"], "train": m["loss"], "held_out": m.get("eval_loss")} for m in metrics
             if m["step"] == 1 or m["step"] % every == 0]
    return curve, sorted(m["tokens_per_second"] for m in metrics)[len(metrics) // 2]


# What comes out -------------------------------------------------------------------------------------------------------
def table(krait, torch_curve):
    lines = ["| step | Krait, train | PyTorch, train | Krait, held out | PyTorch, held out |", "|---|---|---|---|---|"]
    for a, b in zip(krait, torch_curve):
        held_out = [f"{c['held_out']:.4f}" if c["held_out"] is not None else "" for c in (a, b)]
        lines.append(f"| {a['step']} | {a['train']:.4f} | {b['train']:.4f} | {' | '.join(held_out)} |")
    return "\n".join(lines) + "\n"


def chart(curves):
    """Held-out loss against steps as SVG, without the steep beginning, so that the end can be told apart."""
    width, height, left, top = 720, 360, 60, 20
    measured = {n: [(q["step"], q["held_out"]) for q in c if q["held_out"] is not None] for n, c in curves.items()}
    most = 2 * min(v for c in measured.values() for _, v in c)
    shown = {n: [(s, v) for s, v in c if v < most] for n, c in measured.items()}
    points = [q for c in shown.values() for q in c]
    right, low, high = max(s for s, _ in points), min(v for _, v in points) - 0.05, max(v for _, v in points) + 0.05
    at = lambda s, v: (left + s / right * (width - left - 20), top + (high - v) / (high - low) * (height - top - 40))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>']
    for k in range(5):
        value = low + (high - low) * k / 4
        x, y = at(0, value)
        out.append(f'<path d="M{x:.0f} {y:.0f}H{width - 20}" stroke="#ddd"/>'
                   f'<text x="{x - 8:.0f}" y="{y + 4:.0f}" text-anchor="end">{value:.2f}</text>')
        x, y = at(right * k / 4, low)
        out.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{right * k // 4}</text>')
    for k, (name, curve) in enumerate(shown.items()):
        color, dash = ("#c2410c", "") if k == 0 else ("#1d4ed8", ' stroke-dasharray="2 5"')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*q) for q in curve))
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
                   f'<path d="M{width - 230} {36 + 20 * k}h30" stroke="{color}" stroke-width="2"{dash}/>'
                   f'<text x="{width - 192}" y="{40 + 20 * k}">{name}</text>')
    x, y = at(right / 2, low)
    out.append(f'<text x="{x:.0f}" y="{y + 34:.0f}" text-anchor="middle">step</text></svg>')
    return "\n".join(out) + "\n"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--text", required=True, type=pathlib.Path)
    a.add_argument("--krait", default="build/krait", type=pathlib.Path)
    a.add_argument("--output", default="tinystories-curves", type=pathlib.Path)
    a.add_argument("--steps", default=500, type=int)
    a.add_argument("--every", default=50, type=int)
    a.add_argument("--seed", default=0, type=int)
    a = a.parse_args()
    text = np.frombuffer(a.text.read_bytes(), np.uint8)
    a.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        initial = initial_parameters(a.krait, a.text, folder / "start", a.seed)
        krait, krait_speed = train_krait(a.krait, a.text, folder / "run", a.steps, a.every, a.seed)
    print(f"Krait: held out {krait[-1]['held_out']:.4f}, {krait_speed:.0f} tokens/s", flush=True)
    # The same mathematics on the same bytes: else the curves would compare nothing.
    first = [row_start(a.seed, b, len(text) - len(text) // 10 - LENGTH) for b in range(BATCH)]
    with torch.no_grad():
        own = float(loss_of(initial, *rows_at(text, first)))
    assert abs(own - krait[0]["train"]) < 1e-4, f"first loss: PyTorch {own}, Krait {krait[0]['train']}"
    other, torch_speed = train_torch(initial, text, a.steps, a.every, a.seed)
    report = {"text": a.text.name, "steps": a.steps, "krait": krait, "torch": other, "torch_version": torch.__version__,
              "tokens_per_second": {"krait": krait_speed, "torch": torch_speed}}
    (a.output / "curves.json").write_text(json.dumps(report, indent=1) + "\n")
    (a.output / "curves.md").write_text(table(krait, other))
    (a.output / "curves.svg").write_text(chart({"Krait": krait, "PyTorch": other}))
    print(table(krait, other))


if __name__ == "__main__":
    main()
