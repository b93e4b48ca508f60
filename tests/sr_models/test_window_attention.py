"""Windows, shifts and masks of the Swin attention."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from sr_models.swin_unet import ShiftMask, WindowAttention, relative_position_index, shift_mask

SIZES = [(8, 8, 4, 2), (4, 4, 4, 2), (8, 12, 4, 1), (9, 6, 3, 2), (4, 16, 4, 3)]


def window_ids(length: int, window: int, shift: int) -> list[int]:
    """Window of each position of a line when the grid of windows is displaced by ``shift`` and nothing wraps."""
    return [(position - shift) // window for position in range(length)]


@pytest.mark.parametrize(("height", "width", "window", "shift"), SIZES)
def test_swin_mask(height: int, width: int, window: int, shift: int) -> None:
    mask = shift_mask(height, width, window, shift, "swin")
    rows, columns = window_ids(height, window, shift), window_ids(width, window, shift)
    assert mask.shape == (height * width // window**2, window**2, window**2)
    assert mask.dtype == torch.float32
    for number, attended in enumerate(mask):
        top, left = number // (width // window) * window, number % (width // window) * window
        places = [
            ((top + i + shift) % height, (left + j + shift) % width) for i in range(window) for j in range(window)
        ]
        for a, (i, j) in enumerate(places):
            for b, (k, m) in enumerate(places):
                together = rows[i] == rows[k] and columns[j] == columns[m]
                assert attended[a, b] == (0.0 if together else -100.0), (number, (i, j), (k, m))


def test_published_mask_parts_the_bottom_windows_only() -> None:
    mask = shift_mask(8, 12, 4, 2, "published")
    assert not mask[:3].any()
    columns = torch.arange(16) % 4
    apart = (columns[:, None] < 2) != (columns[None, :] < 2)
    assert all(torch.equal(window, apart * -100.0) for window in mask[3:])


@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_relative_position_index(window: int) -> None:
    index = relative_position_index(window).numpy()
    rows, columns = np.divmod(np.arange(window**2), window)
    for a in range(window**2):
        for b in range(window**2):
            down, right = rows[a] - rows[b], columns[a] - columns[b]
            assert index[a, b] == (down + window - 1) * (2 * window - 1) + right + window - 1


@pytest.fixture
def attention() -> WindowAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WindowAttention(8, window=4, heads=2, mask_kind="swin").eval()


@pytest.mark.parametrize("shift", [0, 2])
@torch.no_grad()
def test_attention_reaches_its_window_and_no_further(attention: WindowAttention, shift: int) -> None:
    height, width = 8, 12
    x = torch.randn(1, 8, height, width, generator=torch.Generator().manual_seed(0))
    clean = attention(x, shift)
    rows, columns = torch.tensor(window_ids(height, 4, shift)), torch.tensor(window_ids(width, 4, shift))
    for i in range(height):
        for j in range(width):
            touched = x.clone()
            touched[0, :, i, j] += 1.0
            changed = ((attention(touched, shift) - clean).abs() > 1e-7).any(1)[0]
            assert torch.equal(changed, (rows == rows[i])[:, None] & (columns == columns[j])[None, :]), (i, j)


@pytest.mark.parametrize("shift", [0, 2])
@torch.no_grad()
def test_attention_is_the_softmax_of_its_window(attention: WindowAttention, shift: int) -> None:
    """One position computed by hand from the definition."""
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    i, j = 3, 4
    rows, columns = window_ids(8, 4, shift), window_ids(8, 4, shift)
    places = [(k, m) for k in range(8) for m in range(8) if rows[k] == rows[i] and columns[m] == columns[j]]
    tokens = torch.stack([x[0, :, k, m] for k, m in places])
    q, k, v = attention.qkv(tokens).view(len(places), 3, 2, 4).unbind(1)
    here = places.index((i, j))
    out = torch.zeros(2, 4)
    for head in range(2):
        bias = [attention.relative_position_bias[(i - a + 3) * 7 + (j - b + 3), head] for a, b in places]
        weights = (k[:, head] @ q[here, head] / 4**0.5 + torch.stack(bias)).softmax(0)
        out[head] = weights @ v[:, head]
    expected = attention.proj(out.flatten())
    torch.testing.assert_close(attention(x, shift)[0, :, i, j], expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("kind", get_args(ShiftMask))
@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(kind: ShiftMask) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = WindowAttention(8, window=4, heads=2, mask_kind=kind)
    x = torch.randn(3, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([attention(x[index : index + 1], 2) for index in range(3)])
    torch.testing.assert_close(attention(x, 2), alone, rtol=0.0, atol=1e-6)


def test_mask_cached_under_inference_serves_training(attention: WindowAttention) -> None:
    x = torch.randn(1, 8, 20, 20)
    with torch.inference_mode():
        attention(x, 2)
    attention(x, 2).sum().backward()
    assert attention.relative_position_bias.grad is not None


def test_mask_cached_under_another_default_serves_the_cpu(attention: WindowAttention) -> None:
    with torch.device("meta"):
        shift_mask(24, 28, 4, 2, "swin")
    attention(torch.randn(1, 8, 24, 28), 2)
    try:
        torch.set_default_dtype(torch.float64)
        assert shift_mask(28, 28, 4, 2, "swin").dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
