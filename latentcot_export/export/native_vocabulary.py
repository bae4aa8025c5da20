"""Both ends of the packed pass: the embedding table and the head, float32 or quantised, a tied table stored once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..spec import ModelSpec
from .native_layers import Weights, product_of_codes
from .native_sheet import CONTRIB, Sheet

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class Vocabulary:
    """Tokens to rows, and rows to logits. `before` takes the nodes that run once, ahead of the loop."""

    def __init__(self, spec: ModelSpec, embedding_scale: float, weights: Weights, before: Sheet) -> None:
        self.spec, self.embedding_scale, self.weights, self.before = spec, embedding_scale, weights, before
        self._table: ir.Value | None = None  # a tied one, as the head reads it

    def embedded(self, sheet: Sheet, fresh: ir.Value) -> ir.Value:
        """What fresh rows read `[f, D]`: embedding_scale * E[token]."""
        x = self.rows_of(sheet, EMBEDDING, fresh)
        if self.embedding_scale != 1.0:
            scale = self.weights.constant("constants/embedding_scale", np.array(self.embedding_scale, np.float32))
            x = sheet.one("Mul", f"{EMBEDDING}/scaled", x, scale)
        return x

    def rows_of(self, sheet: Sheet, path: str, ids: ir.Value | None) -> ir.Value:
        """Rows of the embedding table `[..., D]` of ids `[...]`, all of it for None; unscaled."""
        if ids is None:
            return self.weights.values[f"{EMBEDDING}.weight"]
        weights, hidden = self.weights, self.spec.hidden_size
        table = weights.tensors[f"{EMBEDDING}.weight"]
        if weights.bits is None:
            whole = weights.constant(f"{EMBEDDING}.weight", lambda: table.float().numpy())
            return sheet.one("Gather", path, whole, ids, axis=0)
        codes, scale, zero = weights.quantized(EMBEDDING, lambda: table, flat=True)
        block = int(codes.shape[1]) * 8 // weights.bits // int(scale.shape[1])
        x = sheet.one(
            "GatherBlockQuantized",
            path,
            *(codes, ids, scale, zero),
            domain=CONTRIB,
            bits=weights.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        return self.cut(sheet, path, x, hidden, int(scale.shape[1]) * block)

    def cut(self, sheet: Sheet, path: str, x: ir.Value, wanted: int, width: int) -> ir.Value:
        """The first `wanted` of `width` numbers of the last axis."""
        if wanted == width:
            return x
        bounds = [
            self.weights.constant(f"constants/{name}", np.array([value], np.int64))
            for name, value in (("first", 0), (f"until_{wanted}", wanted), ("last_axis", -1))
        ]
        return sheet.one("Slice", path, x, *bounds)

    def logits(self, sheet: Sheet, mix: ir.Value) -> ir.Value:
        """Logits `[h, V]` of mixed states `[h, D]`; a tied table is stored once."""
        weights, tied = self.weights, self.spec.tie_word_embeddings
        if not tied:
            return weights.product(sheet, mix, HEAD)
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        if weights.bits is None:
            if self._table is None:  # runtimes fold this transpose when they load
                table = weights.values[f"{EMBEDDING}.weight"]
                self._table = self.before.one("Transpose", HEAD, table, perm=[1, 0])
            return sheet.one("MatMul", HEAD, mix, self._table)
        codes, scale, zero = (weights.values[f"{EMBEDDING}.weight_{part}"] for part in ("q", "scale", "zero"))
        if self._table is None:
            blocks = int(scale.shape[1])
            self._table = ir.Value(
                name=f"{HEAD}.weight_q",
                shape=ir.Shape([shape[0], blocks, int(codes.shape[1]) // blocks]),
                type=ir.TensorType(ir.DataType.UINT8),
            )
            weights.views[self._table] = codes
        return product_of_codes(sheet, mix, HEAD, [self._table, scale, zero], shape, weights.bits)
