"""The rivals: for each a function that builds its language model at a configuration, and how names of Krait's weights
(the official ones) map to its own.

A model maps token ids [B, L] to logits [B, L, vocab]. `same` says whether its mathematics is that of the published
model, so that with the same weights the loss has to be the same.
"""
import dataclasses
import typing

import torch


@dataclasses.dataclass
class Shape:
    """One configuration; d_inner = expand * d_model. Mamba-2 alone has headdim."""
    layer: str
    vocab: int
    d_model: int
    layers: int
    d_state: int
    batch: int
    length: int
    headdim: int = 0
    expand: int = 2
    chunk: int = 64


SHAPES = {
    "S": Shape("mamba1", 256, 160, 5, 16, 8, 256),
    "S2": Shape("mamba2", 256, 160, 5, 64, 8, 256, headdim=32),
    "M": Shape("mamba1", 10000, 512, 6, 16, 2, 512),
}


class LogitsOnly(torch.nn.Module):
    """A transformers model, without its cache and its output object."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


def transformers_mamba(shape, use_mambapy=False):
    from transformers import MambaConfig, MambaForCausalLM
    return LogitsOnly(MambaForCausalLM(MambaConfig(
        vocab_size=shape.vocab, hidden_size=shape.d_model, num_hidden_layers=shape.layers, state_size=shape.d_state,
        expand=shape.expand, conv_kernel=4, use_bias=False, use_conv_bias=True, tie_word_embeddings=True,
        use_mambapy=use_mambapy)))


def transformers_mamba2(shape):
    from transformers import Mamba2Config, Mamba2ForCausalLM
    return LogitsOnly(Mamba2ForCausalLM(Mamba2Config(
        vocab_size=shape.vocab, hidden_size=shape.d_model, num_hidden_layers=shape.layers, state_size=shape.d_state,
        expand=shape.expand, head_dim=shape.headdim, num_heads=shape.expand * shape.d_model // shape.headdim, n_groups=1,
        conv_kernel=4, use_bias=False, use_conv_bias=True, chunk_size=shape.chunk, tie_word_embeddings=True)))


class MambapyModel(torch.nn.Module):
    """The layers of mamba.py between an embedding and a head tied to it. (mambapy's own language model cannot be imported
    without CUDA: it wants mamba_ssm, as its Mamba-2 does.)"""

    def __init__(self, shape):
        super().__init__()
        from mambapy.mamba import Mamba, MambaConfig, RMSNorm
        config = MambaConfig(d_model=shape.d_model, n_layers=shape.layers, d_state=shape.d_state,
                             expand_factor=shape.expand, pscan=True)
        self.embedding = torch.nn.Embedding(shape.vocab, shape.d_model)
        self.mamba = Mamba(config)
        self.norm_f = RMSNorm(shape.d_model, config.rms_norm_eps, False)

    def forward(self, ids):
        return torch.nn.functional.linear(self.norm_f(self.mamba(self.embedding(ids))), self.embedding.weight)


def mambapy(shape):
    return MambapyModel(shape)


def minimamba(shape):
    from minimamba import MambaForCausalLM, MambaLMConfig
    return MambaForCausalLM(MambaLMConfig(d_model=shape.d_model, n_layer=shape.layers, d_state=shape.d_state,
                                          expand=shape.expand, vocab_size=shape.vocab, device="cpu"))


def eager_mamba2(shape):
    from mamba2_minimal import LanguageModel
    return LanguageModel(shape)


def compiled_mamba2(shape):
    return torch.compile(eager_mamba2(shape))


def compiled_mambapy(shape):
    return torch.compile(mambapy(shape))


def _hf(name):
    return "model." + name.replace("backbone.embedding.", "backbone.embeddings.")


def _mambapy(name):
    if name.startswith("backbone.layers."):
        return name.replace("backbone.", "mamba.", 1)
    return name.removeprefix("backbone.")


@dataclasses.dataclass
class Rival:
    title: str
    package: str
    build: typing.Callable
    shapes: tuple
    same: bool
    rename: typing.Callable
    compiles: bool = False
    limit: float = 60  # seconds for one rival at one heap, after which no further round begins


RIVALS = {
    "mambapy": Rival("mamba.py, parallel scan", "mambapy", mambapy, ("S", "M"), True, _mambapy),
    "mambapy-compiled": Rival("mamba.py under torch.compile", "mambapy", compiled_mambapy, ("S",), True,
                              lambda n: "_orig_mod." + _mambapy(n), True),
    "minimamba": Rival("MiniMamba", "minimamba", minimamba, ("S", "M"), False, None),
    "transformers": Rival("transformers, Mamba", "transformers", transformers_mamba, ("S", "M"), True, _hf),
    "transformers-mambapy": Rival("transformers, Mamba with the mamba.py scan", "transformers",
                                  lambda shape: transformers_mamba(shape, True), ("S",), True, _hf),
    "transformers-2": Rival("transformers, Mamba-2", "transformers", transformers_mamba2, ("S2",), True, _hf),
    "eager-2": Rival("torch, Mamba-2 as in its paper's listing", "torch", eager_mamba2, ("S2",), True, lambda n: n),
    "compiled-2": Rival("the same under torch.compile", "torch", compiled_mamba2, ("S2",), True,
                        lambda n: "_orig_mod." + n, True),
}


def load(model, rival, tensors):
    """Copies Krait's weights into the model. Tied heads follow; an untied head gets the embedding's weights."""
    own = model.state_dict()
    embedding = tensors["backbone.embedding.weight"]
    done = set()
    with torch.no_grad():
        for name, value in tensors.items():
            if name in ("loss", "batch.tokens", "batch.targets"):
                continue
            target = rival.rename(name)
            own[target].copy_(value.reshape(own[target].shape))
            done.add(target)
        for name, value in own.items():
            if name.endswith("lm_head.weight") and name not in done:
                value.copy_(embedding)
                done.add(name)
    missing = set(own) - done
    if missing:
        raise SystemExit(f"{rival.title}: no weights for {sorted(missing)[:3]}")
