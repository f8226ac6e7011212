"""Mamba-2 in plain PyTorch, as the paper's listing has it (Dao & Gu 2024, arXiv:2405.21060, listing 1): what one gets on
a CPU without the CUDA kernels. Parameter names are the official ones.
"""
import torch
import torch.nn.functional as F
from torch import nn


def segment_sum(x):
    """[..., T] to [..., T, T]: sums of x over (s, t], minus infinity above the diagonal."""
    length = x.shape[-1]
    x = x[..., None].expand(*x.shape, length)
    below = torch.ones(length, length, dtype=torch.bool, device=x.device).tril(-1)
    sums = x.masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(~torch.ones_like(below).tril(), -torch.inf)


def ssd(x, log_a, b, c, chunk):
    """x [B, L, H, P], log_a [B, L, H], b and c [B, L, N] (one group) to y [B, L, H, P]. L is a multiple of chunk."""
    batch, length, heads, width = x.shape
    x, b, c = (t.reshape(batch, length // chunk, chunk, *t.shape[2:]) for t in (x, b, c))
    log_a = log_a.reshape(batch, length // chunk, chunk, heads).permute(0, 3, 1, 2)
    sums = log_a.cumsum(-1)
    inside = torch.einsum("bcln,bcsn,bhcls,bcshp->bclhp", c, b, segment_sum(log_a).exp(), x)
    states = torch.einsum("bcln,bhcl,bclhp->bchpn", b, (sums[..., -1:] - sums).exp(), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = segment_sum(F.pad(sums[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    across = torch.einsum("bcln,bchpn,bhcl->bclhp", c, states, sums.exp())
    return (inside + across).reshape(batch, length, heads, width)


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Mixer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.inner = s.expand * s.d_model
        self.heads = self.inner // s.headdim
        channels = self.inner + 2 * s.d_state
        self.in_proj = nn.Linear(s.d_model, 2 * self.inner + 2 * s.d_state + self.heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = Norm(self.inner)
        self.out_proj = nn.Linear(self.inner, s.d_model, bias=False)

    def forward(self, u):
        batch, length, _ = u.shape
        n = self.s.d_state
        z, xbc, dt = self.in_proj(u).split([self.inner, self.inner + 2 * n, self.heads], dim=-1)
        xbc = F.silu(self.conv1d(xbc.transpose(1, 2))[..., :length].transpose(1, 2))
        x, b, c = xbc.split([self.inner, n, n], dim=-1)
        x = x.reshape(batch, length, self.heads, self.s.headdim)
        dt = F.softplus(dt + self.dt_bias)
        y = ssd(x * dt[..., None], dt * -self.A_log.exp(), b, c, self.s.chunk) + x * self.D[:, None]
        return self.out_proj(self.norm(y.reshape(batch, length, self.inner) * F.silu(z)))


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.norm = Norm(s.d_model)
        self.mixer = Mixer(s)

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embedding = nn.Embedding(s.vocab, s.d_model)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm_f = Norm(s.d_model)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class LanguageModel(nn.Module):
    """The head is the embedding, as in the published models."""

    def __init__(self, s):
        super().__init__()
        self.backbone = Backbone(s)

    def forward(self, ids):
        return F.linear(self.backbone(ids), self.backbone.embedding.weight)
