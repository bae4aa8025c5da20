"""The parallel schedule of PonderLM-2: the published one, and where it meets the exact order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from latentcot_export.checkpoint import random_tensors
from latentcot_export.checkpoint.families import find_family
from latentcot_export.model import LatentCoT, token_major
from latentcot_export.model.jacobi import jacobi, refined, refinements
from latentcot_export.spec import FeedbackSpec, ModelSpec, RecurrenceSpec
from tests.specs import backbones

SPEC = ModelSpec(64, 24, 32, 2, 4, 2, 6, 1e-5, 64)


def thoughts(latents: int, **kinds: Any) -> RecurrenceSpec:
    return RecurrenceSpec(latents, visibility="all", stop="count", **{"readout": "last", **kinds})


def build(spec: ModelSpec, recurrence: RecurrenceSpec, seed: int = 0) -> LatentCoT:
    return LatentCoT.from_tensors(spec, recurrence, random_tensors(spec, recurrence, seed), torch.float64)


def prompts(spec: ModelSpec, *lengths: int, seed: int = 0) -> torch.Tensor:
    tokens = torch.full((len(lengths), max(lengths)), -1)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed + row)
        tokens[row, :length] = torch.randint(0, spec.vocab_size, (length,), generator=generator)
    return tokens


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


RECURRENCES = st.builds(
    thoughts,
    st.integers(0, 3),
    embedding_scale=st.sampled_from((1.0, 3.0)),
    readout=st.sampled_from(("last", "mixture", "sum")),
    feedback=st.sampled_from((None, FeedbackSpec(5, residual=False, scale=2.0), FeedbackSpec(None, residual=True))),
)


@settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(backbones(), RECURRENCES, st.integers(0, 1000))
def test_enough_rounds_are_exact_from_left_to_right(spec: ModelSpec, recurrence: RecurrenceSpec, seed: int) -> None:
    model, tokens = build(spec, recurrence, seed), prompts(spec, 6, 4, seed=seed)
    exact, there = token_major(model, tokens).mix, tokens >= 0
    latents = recurrence.max_latents
    same(jacobi(model, tokens, latents * tokens.shape[1])[there], exact[there])
    for rounds, mix in zip(range(latents * 2 + 1), refinements(model, tokens), strict=False):
        known = there.clone()
        known[:, rounds // max(latents, 1) + 1 :] = False
        same(mix[known], exact[known])


@settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(backbones(), RECURRENCES, st.integers(0, 1000), st.booleans())
def test_what_follows_a_refined_prompt_reads_it(
    spec: ModelSpec, recurrence: RecurrenceSpec, seed: int, forced: bool
) -> None:
    model, tokens = build(spec, recurrence, seed), prompts(spec, 8, 5, 2, seed=seed)
    there, prompt = tokens >= 0, torch.tensor([4, 5, 1])
    depths = None
    if forced:
        depths = torch.randint(0, recurrence.max_steps + 2, tokens.shape, generator=torch.Generator().manual_seed(seed))
    exact = token_major(model, tokens, depths)
    enough = refined(model, tokens, recurrence.max_latents * 8, prompt, depths)
    same(enough.mix[there], exact.mix[there])
    assert enough.depths.tolist() == exact.depths.tolist()
    for rounds in (0, 2):
        batch = refined(model, tokens, rounds, prompt, depths)
        for row, length in enumerate((8, 5, 2)):
            part = (tokens[row : row + 1, :length], rounds, prompt[row : row + 1])
            alone = refined(model, *part, None if depths is None else depths[row : row + 1, :length])
            same(batch.mix[row, :length], alone.mix[0])
            if depths is None:
                begun = tokens[row : row + 1, : prompt[row]]
                same(batch.mix[row, : prompt[row]], jacobi(model, begun, rounds)[0])


@pytest.mark.parametrize("latents", [1, 2])
def test_fewer_rounds_are_an_approximation_that_improves(latents: int) -> None:
    model, tokens = build(SPEC, thoughts(latents)), prompts(SPEC, 12, 12, 12)
    exact = token_major(model, tokens).mix
    errors = [float((jacobi(model, tokens, rounds) - exact).abs().max()) for rounds in (0, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-2 and errors[-1] < errors[0] / 3, errors
    # the bound of the docstring is not a round too generous: of the second token a round less is not exact
    assert float((jacobi(model, tokens, latents - 1) - exact)[:, 1].abs().max()) > 1e-6


@pytest.mark.parametrize("rounds", [0, 3])
def test_batches_padding_and_later_tokens_change_nothing(rounds: int) -> None:
    model, tokens = build(SPEC, thoughts(2)), prompts(SPEC, 9, 5, 1)
    batch = jacobi(model, tokens, rounds)
    assert not batch.isnan().any()
    for row, length in enumerate((9, 5, 1)):
        same(batch[row, :length], jacobi(model, tokens[row : row + 1, :length], rounds)[0])
        begun = (length + 1) // 2
        same(batch[row, :begun], jacobi(model, tokens[row : row + 1, :begun], rounds)[0])


def published(stock: Any, tokens: torch.Tensor, length: int, latents: int, rounds: int, scale: float) -> torch.Tensor:
    """Logits as the released code schedules them: stages interleaved, a stock model under its causal mask.

    The first `length` tokens are refined, the others decoded: their rows come one after the other behind those.
    """
    stages = [stock.get_input_embeddings()(tokens[:, :length]) * scale]

    def states(rows: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        # without a mask transformers takes positions that repeat for several sequences in one row
        position = position.expand(len(tokens), -1)
        given = {"position_ids": position, "attention_mask": torch.ones_like(position), "use_cache": False}
        out: torch.Tensor = stock.base_model(inputs_embeds=rows, **given).last_hidden_state
        return out

    def interleaved() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.stack(stages, dim=2).reshape(len(tokens), length * len(stages), -1)
        return rows, torch.arange(length).repeat_interleave(len(stages))

    def hidden() -> torch.Tensor:
        return states(*interleaved()).reshape(len(tokens), length, len(stages), -1)

    for k in range(1, latents + 1):
        stages = [stages[0]] + [hidden()[:, :, j] for j in range(k)]
    for _ in range(rounds):
        stages = [stages[0]] + [hidden()[:, :, j] for j in range(latents)]
    read = [hidden()[:, :, latents]]
    rows, position = interleaved()
    for t in range(length, tokens.shape[1]):
        x = stock.get_input_embeddings()(tokens[:, t : t + 1]) * scale
        for _ in range(latents + 1):
            rows, position = torch.cat((rows, x), dim=1), torch.cat((position, torch.tensor([t])))
            x = states(rows, position)[:, -1:]
        read.append(x)
    logits: torch.Tensor = stock.get_output_embeddings()(torch.cat(read, dim=1))
    return logits


@pytest.mark.parametrize(("kind", "latents", "rounds"), [("llama", 1, 2), ("llama", 3, 0), ("gpt_neox", 2, 1)])
def test_the_schedule_is_the_published_one(kind: str, latents: int, rounds: int) -> None:
    import transformers

    keys: dict[str, Any] = {
        **{"vocab_size": 50, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": False},
        **({"rotary_pct": 0.7} if kind == "gpt_neox" else {"num_key_value_heads": 2}),
    }
    config = {**keys, "model_type": kind, "num_latent_thoughts": latents, "interpolation": False, "scale_embeds": True}
    model_spec, recurrence = find_family("ponderlm2", "test").specs(config, "test")
    tensors = random_tensors(model_spec, recurrence, 3)
    tensors["model.embed_tokens.weight"] /= recurrence.embedding_scale  # else thoughts would hardly matter
    model = LatentCoT.from_tensors(model_spec, recurrence, tensors, torch.float64)
    layout = find_family("ponderlm2", "test").published(model_spec, recurrence, config)
    stock = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **keys), attn_implementation="eager"
    )
    renamed = {name.replace("embed_out.", "lm_head."): value for name, value in layout.published(tensors).items()}
    stock.load_state_dict(renamed, strict=True)
    tokens = prompts(model_spec, 8, 8)
    with torch.no_grad():
        wanted = published(stock.double().eval(), tokens, 6, latents, rounds, (2.5 * 24) ** 0.5)
    found = refined(model, tokens, rounds, torch.tensor([6, 6]))
    # transformers takes its norms and softmax through float32
    torch.testing.assert_close(model.head(found.mix), wanted, rtol=1e-4, atol=1e-4)
    assert float((found.mix - token_major(model, tokens).mix)[:, 6:].abs().max()) > 1e-3
    same(found.mix[:, :6], jacobi(model, tokens[:, :6], rounds))
    assert float((jacobi(model, tokens, rounds + 1) - jacobi(model, tokens, rounds)).abs().max()) > 1e-3
