"""Meta's own modules (llama_models over fairscale) on one CPU: a process group of one, and what needs a GPU put aside.

Llama 4's attention calls .cuda() on its caches: here that leaves them where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """fairscale's model parallelism over gloo with a world of 1. folder: for the file the ranks would meet at."""
    import torch
    import torch.distributed as dist
    from fairscale.nn.model_parallel import initialize

    cuda = torch.Tensor.cuda
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=0, world_size=1)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    try:
        initialize.initialize_model_parallel(1)
        yield
    finally:
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]
        initialize.destroy_model_parallel()
        dist.destroy_process_group()


def randomize(module: Any, seed: int, gain: float = 1.0) -> None:
    """Weights for which every part of the network matters: matrices of std gain / sqrt(inputs), norms about 1, gates
    and biases not 0. Embeddings have a std of 0.5."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or ".ln_" in name:
                parameter.copy_((0.1 * noise + name.endswith("weight")).to(parameter.dtype))
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise + (0.5 if parameter.numel() == 1 else 0.0))
            elif "embedding" in name:
                parameter.copy_(0.5 * noise)
            else:
                inputs = parameter.shape[-2] if ".experts." in name or "router" in name else parameter.shape[-1]
                parameter.copy_(noise * gain * inputs**-0.5)
