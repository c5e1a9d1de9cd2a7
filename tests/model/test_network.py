"""The trunk against an independent formulation, positions, masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from padpolicy.model.dit import DiT
from padpolicy.model.layers import grid_positions, sincos
from padpolicy.model.masks import COUPLINGS, MODES, NOISED, describe, mode_table, who_sees_whom
from padpolicy.model.tokens import Glance

B, C, N, D, H = 2, 5, 7, 16, 4


def random_trunk(recompute: bool = False) -> DiT:
    torch.manual_seed(0)
    trunk = DiT(D, 3, H, recompute=recompute)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return trunk


def one_pass(trunk: DiT, context, noised, cond_context, cond_noised, see) -> torch.Tensor:
    """All tokens in one sequence under one (B, C + N, C + N) mask: what the cache must be equal to."""
    x = torch.cat([context, noised], 1)
    cond = torch.cat([cond_context.expand(-1, C, -1), cond_noised], 1)
    for block in trunk.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(cond).chunk(6, -1)
        h = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale1) + shift1
        q, k, v = (t.view(B, C + N, H, -1).transpose(1, 2) for t in block.attn.qkv(h).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2) / (D // H) ** 0.5).masked_fill(~see[:, None], float("-inf"))
        x = x + gate1 * block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + gate2 * block.mlp(F.layer_norm(x, (D,), eps=1e-6) * (1 + scale2) + shift2)
    return x[:, C:]


def test_the_cached_context_is_one_pass_over_everything():
    trunk = random_trunk().double()
    torch.manual_seed(1)
    context, noised = torch.randn(B, C, D).double(), torch.randn(B, N, D).double()
    cond_context, rows = torch.randn(B, 1, D).double(), torch.randn(B, 2, D).double()
    select = F.one_hot(torch.tensor([0, 0, 0, 1, 1, 1, 1]), 2).double()
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    among = torch.rand(N, N) < 0.6
    among |= torch.eye(N, dtype=torch.bool)
    see = torch.zeros(B, C + N, C + N, dtype=torch.bool)
    see[:, :, :C] = mask[:, None]
    see[:, C:, C:] = among
    expected = one_pass(trunk, context, noised, cond_context, select @ rows, see)
    cache = trunk.context(context, cond_context, mask)
    for _ in range(2):  # the cache can be read again and again
        got = trunk.denoise(noised, rows, select, cache, see[:, None, C:])
        assert torch.allclose(got, expected, atol=1e-9)


def test_a_fresh_block_is_the_identity():
    torch.manual_seed(0)
    trunk = DiT(D, 3, H)
    x = torch.randn(B, N, D)
    cache = trunk.context(torch.randn(B, C, D), torch.randn(B, 1, D), None)
    assert torch.equal(trunk.denoise(x, torch.randn(B, 1, D), None, cache, None), x)


def test_permuting_a_batch_permutes_the_output():
    trunk, order = random_trunk(), torch.tensor([1, 0])
    context, x, cond = torch.randn(B, C, D), torch.randn(B, N, D), torch.randn(B, 1, D)
    y = trunk.denoise(x, cond, None, trunk.context(context, cond, None), None)
    cache = trunk.context(context[order], cond[order], None)
    assert torch.allclose(trunk.denoise(x[order], cond[order], None, cache, None), y[order], atol=1e-5)


def test_positions_are_distinct_and_cosine_comes_first():
    places = grid_positions(6, 6, 32)
    assert places.shape == (36, 32)
    assert torch.pdist(places).min() > 0.1
    assert torch.equal(sincos(torch.zeros(1), 8)[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert torch.allclose(sincos(torch.tensor([0.3]), 8)[0, 0], torch.tensor(0.3).cos())


def test_a_glance_is_attention_over_what_is_there():
    torch.manual_seed(0)
    glance = Glance(D, heads=1)
    x, asked = torch.randn(B, C, D), torch.randn(B, 1, D)
    mask = torch.tensor([[True, False, True, True, False], [False] * C])
    key, value = glance.key_value(x).chunk(2, -1)
    weight = (glance.query(asked[:1])[0] @ key[0][mask[0]].T / D**0.5).softmax(-1)
    expected = glance.think(torch.cat([weight @ value[0][mask[0]], asked[0]], -1))
    got = glance(x, mask, asked)
    assert torch.allclose(got[0], expected, atol=1e-6)
    nothing = glance.think(torch.cat([torch.zeros(1, D), asked[1]], -1))
    assert torch.allclose(got[1], nothing[0], atol=1e-6)
    assert torch.equal(glance(x + 9 * ~mask[..., None], mask, asked), got)  # what is absent is not looked at


def test_the_modes_table():
    for coupling in COUPLINGS:
        table = mode_table(coupling)
        assert tuple(table) == MODES
        for name, mode in table.items():
            assert set(mode.given) <= set(mode.groups) <= set(NOISED)
            assert mode.denoised, name
            assert all(group in mode.sees[group] for group in mode.groups)
    blind, pad, full = (mode_table(coupling)["joint"].sees for coupling in ("blind", "pad", "full"))
    assert blind["action"] == ("action",) and "action" in blind["future_rgb"]
    assert set(pad["action"]) == set(NOISED) and "action" not in pad["future_rgb"]
    assert set(full["action"]) == set(full["future_rgb"]) == set(NOISED)


def test_who_sees_whom_as_a_matrix():
    see = who_sees_whom(mode_table("blind")["joint"], {"future_rgb": 2, "action": 1})
    assert see.tolist() == [[True, True, True], [True, True, True], [False, False, True]]
    assert who_sees_whom(mode_table("full")["joint"], {"future_rgb": 2, "action": 1}) is None
    assert who_sees_whom(mode_table("blind")["policy"], {"action": 4}) is None
    assert "forward  future_rgb    denoised  sees context without text, future_rgb, future_depth, action" in describe(
        "blind"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputation_gives_the_same_gradients(precision):
    grads = []
    for recompute in (False, True):
        trunk = random_trunk(recompute)
        torch.manual_seed(2)
        context, x, cond = torch.randn(B, C, D), torch.randn(B, N, D), torch.randn(B, 1, D)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            trunk.denoise(x, cond, None, trunk.context(context, cond, None), None).float().sum().backward()
        grads.append([p.grad for p in trunk.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
