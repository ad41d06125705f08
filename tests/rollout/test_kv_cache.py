"""The cache and the masks, against the plain definitions."""

from __future__ import annotations

import torch

from vapo.rollout.kv_cache import SlotCache, StepMasks


def states(batch: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 2, tokens, 4, generator=generator) for _ in range(2))


def test_what_was_stored_is_read_back_at_its_row_and_column():
    cache = SlotCache(rows=5, capacity=64)
    prompt_k, prompt_v = states(2, 7, seed=0)
    cache.begin_prefill(source=torch.tensor([0, 0, 1]), target=torch.tensor([0, 2, 1]))
    assert cache.update(prompt_k, prompt_v, 0)[0] is prompt_k
    step_k, step_v = states(3, 1, seed=1)
    cache.begin_step(torch.tensor([7, 3, 6]), width=32)
    keys, values = cache.update(step_k, step_v, 0)
    assert keys.shape == values.shape == (3, 2, 32, 4)
    for read, prompt, step in ((keys, prompt_k, step_k), (values, prompt_v, step_v)):
        assert torch.equal(read[0, :, :7], prompt[0])
        assert torch.equal(read[2, :, :6], prompt[0, :, :6])
        assert torch.equal(read[1, :, :3], prompt[1, :, :3])
        assert torch.equal(torch.stack([read[0, :, 7], read[1, :, 3], read[2, :, 6]]), step[:, :, 0])
        assert torch.equal(read[1, :, 4:7], prompt[1, :, 4:7])
        assert not read[:, :, 8:].any()


def test_rows_move_and_caches_grow_with_their_contents():
    cache = SlotCache(rows=3, capacity=32)
    k, v = states(1, 6, seed=0)
    cache.begin_prefill(torch.tensor([0]), torch.tensor([2]))
    cache.update(k, v, 0)
    cache.copy_rows(torch.tensor([2]), torch.tensor([0]), width=6)
    cache.grow(96)
    cache.begin_step(torch.tensor([90]), width=96)
    keys, _ = cache.update(*states(1, 1, seed=1), 0)
    assert torch.equal(keys[0, :, :6], k[0])
    assert torch.equal(keys[0, :, 90], states(1, 1, seed=1)[0][0, :, 0])


def test_masks_are_the_definition_of_causal_and_sliding_attention():
    for window in (None, 4):
        masks = StepMasks(rows=4, capacity=32, window=window, dtype=torch.float32, device=torch.device("cpu"))
        positions = torch.tensor([0, 2, 9, 3])
        masks.reset(torch.tensor([1, 2, 3]), positions[1:])
        for _ in range(8):
            got = masks.step(positions, width=32)
            columns = torch.arange(32)
            seen = columns <= positions[:, None]
            if window is not None:
                seen &= columns > positions[:, None] - window
            assert torch.equal(got[:, 0, 0], torch.zeros(4, 32).masked_fill(~seen, float("-inf")))
            positions += 1
