"""Loops of :mod:`crystal_gym.agents.kernels` in C, compiled when they are first needed.

A whole MLP goes over a chunk of rows that stays in the first caches, where torch passes over memory
for every product and every activation: 12.8 instead of 16.6 ms for three layers of 64 over 70,000
rows, activations included (one core with AVX-512). Where there is no compiler torch does the same,
slower.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal_gym.agents.workspace import Loan

__all__ = ["LoopsInC", "loops_in_c"]

_SOURCE = Path(__file__).with_name("kernels.c")

# nearbyintf and the comparisons are vector instructions where they need not trap; -ffast-math,
# which would also do, forgets NaN.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_X86_FLAGS = ("-mprefer-vector-width=512",)

_ROWS_A_THREAD = 4096
"""Starting a thread takes 0.1 ms, as long as some hundred rows do."""


class LoopsInC:
    """The loops of ``kernels.c``, over contiguous float32 matrices on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self._forward = library.mlp_forward
        before: list[Any] = [pointer, number, number]
        after: list[Any] = [pointer, number, pointer]
        self._forward.argtypes = [*before, *[pointer] * 4, ctypes.c_int, pointer, *after, pointer]
        self._backward = library.mlp_backward
        self._backward.argtypes = [*before, *[pointer] * 9, *after]
        self._products = library.products
        self._products.argtypes = [pointer] * 4 + [number] * 2
        self._attention_gradient = library.attention_gradient
        self._attention_gradient.argtypes = [pointer] * 8 + [number] * 2
        self._chunk = ctypes.c_long.in_dll(library, "chunk").value

    def mlp_forward(
        self,
        x: Tensor,
        layers: Sequence[tuple[Tensor, Tensor]],
        keep: bool,
        skip: Tensor | None,
        ends: Tensor | None,
        pairs: Tensor | None,
        pairs_at: int,
    ) -> tuple[list[Tensor], Tensor | None, Loan]:
        """Return what every layer gives, or only the last one unless ``keep``; and it + skip.

        The loan is of what layers but the last give.

        Layers take their sum ``s`` to ``ln(1/2 + 2^s)``, as they do in :mod:`.kernels`.
        """
        weights = [weight.t().contiguous() for weight, _ in layers]
        biases = [bias for _, bias in layers]
        sizes = _sizes(x, biases)
        parts = _parts(len(x))
        kept = len(x) if keep else len(parts) * self._chunk
        widths = sizes[1:-1]
        loan = Loan(kept * sum(widths))
        hidden = loan.memory.split([kept * width for width in widths]) if widths else ()
        outs = [h.view(kept, width) for h, width in zip(hidden, widths, strict=True)]
        outs.append(x.new_empty(len(x), sizes[-1]))
        added = None if skip is None else torch.empty_like(outs[-1])

        def run(number: int, rows: slice) -> None:
            inner = rows if keep else slice(number * self._chunk, None)
            to = [*(out[inner] for out in outs[:-1]), outs[-1][rows]]
            part, of_skip, of_pairs, sums = (_rows(t, rows) for t in (x, skip, pairs, added))
            self._forward(
                *(_at(part), rows.stop - rows.start, len(layers), sizes, _all_at(weights)),
                *(_all_at(biases), _all_at(to), keep, _at(ends), _at(of_pairs), pairs_at),
                *(_at(of_skip), _at(sums)),
            )

        _in_threads(run, parts)
        return outs if keep else outs[-1:], added, loan

    def mlp_backward(
        self,
        x: Tensor,
        outs: Sequence[Tensor],
        weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        grad_weights: Sequence[Tensor],
        grad_biases: Sequence[Tensor],
        grad_x: Tensor | None,
        adds_input: bool,
        grad_pairs: Tensor | None,
        pairs_at: int,
    ) -> None:
        """Write the gradients of :meth:`mlp_forward`, of what it kept.

        Args:
            x: What went in.
            outs: What every layer gave.
            weights: Of the layers, unscaled.
            grads: Of the last layer's result, and of it + skip if that counts as well.
            grad_weights: Grow.
            grad_biases: Grow.
            grad_x: Is written.
            adds_input: Whether the last of ``grads`` is a part of ``grad_x``.
            grad_pairs: Gradient of the sums of layer ``pairs_at``; is written.
            pairs_at: Number of that layer.
        """
        sizes = _sizes(x, grad_biases)
        weights = [weight.contiguous() for weight in weights]
        parts = _parts(len(x))
        # Every thread adds up its own rows.
        totals = [*grad_weights, *grad_biases]
        shares = [totals, *([torch.zeros_like(t) for t in totals] for _ in parts[1:])]
        to_x = grads[-1] if adds_input else None
        added = grads[1] if len(grads) > 1 else None

        def run(number: int, rows: slice) -> None:
            share, work = shares[number], x.new_empty(2 * self._chunk, max(sizes))
            part, g, g_added, g_x, more, g_pairs = (
                _rows(t, rows) for t in (x, grads[0], added, grad_x, to_x, grad_pairs)
            )
            self._backward(
                *(_at(part), rows.stop - rows.start, len(outs), sizes, _all_at(weights)),
                *(_all_at([out[rows] for out in outs]), _at(g), _at(g_added)),
                *(_all_at(share[: len(outs)]), _all_at(share[len(outs) :]), _at(g_x), _at(more)),
                *(_at(g_pairs), pairs_at, _at(work)),
            )

        _in_threads(run, parts)
        for share in shares[1:]:
            for total, some in zip(totals, share, strict=True):
                total.add_(some)

    def products(self, x: Tensor, query: Tensor, number: Tensor) -> Tensor:
        """Return the product of every row of ``x`` with that of ``query`` at its number."""
        out = x.new_empty(len(x))
        self._products(*(t.data_ptr() for t in (x, query, number, out)), *x.shape)
        return out

    def attention_gradient(
        self,
        x: Tensor,
        query: Tensor,
        grad: Tensor,
        common: Tensor,
        share: Tensor,
        number: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of :func:`attention_pool` by ``x`` and by its logits."""
        grad_x, grad_logit = torch.empty_like(x), torch.empty_like(share)
        tensors = (x, query, grad, common, share, number, grad_x, grad_logit)
        self._attention_gradient(*(t.data_ptr() for t in tensors), *x.shape)
        return grad_x, grad_logit


def _parts(n_rows: int) -> list[slice]:
    """Return one range of rows for every thread that torch may use, and that pays."""
    count = max(1, min(torch.get_num_threads(), n_rows // _ROWS_A_THREAD))
    ends = [n_rows * i // count for i in range(count + 1)]
    return list(map(slice, ends[:-1], ends[1:]))


def _in_threads(run: Callable[[int, slice], None], parts: Sequence[slice]) -> None:
    """Call ``run`` with the number and the rows of every part, at the same time."""
    if len(parts) == 1:
        run(0, parts[0])
        return
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(run, range(len(parts)), parts))


def _sizes(x: Tensor, biases: Sequence[Tensor]) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * (len(biases) + 1))(x.shape[1], *map(len, biases))


def _rows(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _all_at(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def loops_in_c(x: Tensor) -> LoopsInC | None:
    """Return the loops where they can serve a tensor."""
    return _compiled() if x.device.type == "cpu" and x.dtype == torch.float32 else None


@lru_cache(maxsize=1)
def _compiled() -> LoopsInC | None:
    """Return the loops, compiled for this very processor; None where no C compiler makes them.

    The library's folder is gone when this returns: nothing that is loaded lies about.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        command = [compiler, *_FLAGS, *(_X86_FLAGS if x86 else ()), str(_SOURCE), "-o"]
        try:
            subprocess.run(
                [*command, str(library), "-lm"], check=True, capture_output=True, timeout=60
            )
            return LoopsInC(ctypes.CDLL(str(library)))
        except (OSError, subprocess.SubprocessError):
            return None
