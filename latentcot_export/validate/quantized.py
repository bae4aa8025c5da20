"""Block-wise quantised matrices, as ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized` hold them.

Along its inputs a row is cut into blocks; each has a scale, float32 or of narrow rows, and a whole zero point, and
w = (code - zero) * scale.
Codes and zero points of 4 bits lie two in a byte, the first in the lower half; a last block is filled up with code = zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

BITS = {"int8": 8, "int4": 4}
# Elements worked on together: a few MiB of float32, which a cache holds.
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A matrix `[rows, columns]` in blocks of `block` columns.

    codes uint8 `[rows, blocks, block * bits / 8]`, scale float32, float16 or bfloat16 `[rows, blocks]`, zero uint8 `[rows,
    ceil(blocks * bits / 8)]`.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    columns: int
    bits: int

    @property
    def block(self) -> int:
        """Columns of a block."""
        return self.codes.shape[2] * 8 // self.bits

    def __getitem__(self, rows: slice) -> Quantized:
        """Some rows, as views."""
        return Quantized(self.codes[rows], self.scale[rows], self.zero[rows], self.columns, self.bits)

    def codes_and_zeros(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes float32 `[rows, blocks, block]` and zero points float32 `[rows, blocks, 1]`, one a number."""
        blocks = self.scale.shape[1]
        codes, zero = unpack(self.codes, self.bits), unpack(self.zero, self.bits)[:, :blocks]
        return codes.float(), zero.float().unsqueeze(-1)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are worked on together."""
        rows = self.codes.shape[0]
        step = max(1, _CHUNK // max(1, self.columns))
        yield from ((start, min(rows, start + step)) for start in range(0, rows, step))

    def dequantized(self) -> torch.Tensor:
        """The weights that the kernels mean, float32 `[rows, columns]`."""
        made = torch.empty(self.codes.shape[0], self.columns)
        for start, stop in self.chunks():
            part = self[start:stop]
            codes, zero = part.codes_and_zeros()
            values = (codes - zero) * part.scale.float().unsqueeze(-1)
            made[start:stop] = values.reshape(stop - start, -1)[:, : self.columns]
        return made


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 `[..., n * 8 / bits]` of bytes `[..., n]`. A view at 8 bits."""
    return packed if bits == 8 else torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `unpack` for codes `[..., n]` of any float or integer type; an odd n is filled up with a 0."""
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def plain_steps(blocks: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point `[..., 1]` of blocks float32 `[..., block]` when all of their range, and 0, is to be reached."""
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    # a block of zeros has no range: the smallest normal float keeps its codes at the zero point
    scale = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, (-low / scale).round()


def rounded_up(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The least numbers of `dtype`, as float32, that are not below positive scales: a block's last code still reaches."""
    if dtype == torch.float32:
        return scale
    near = scale.to(dtype)
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near.float() < scale, above, near).float()


def nearest(blocks: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes, as floats, that come closest to blocks `[..., block]`."""
    return (blocks / scale).round().add_(zero).clamp_(0, 2**bits - 1)


def in_blocks(weight: torch.Tensor, block: int) -> torch.Tensor:
    """A matrix `[rows, columns]` as float32 `[rows, blocks, block]`, filled up with zeros."""
    rows, columns = weight.shape
    return torch.nn.functional.pad(weight.float(), (0, -columns % block)).reshape(rows, -1, block)
