"""The loss and its gradient, written during the forward, beside plain autograd."""

import pytest
import torch
import torch.nn.functional as F

from projkern.compression import losses
from projkern.compression.config import CompressConfig
from projkern.compression.losses import next_token_losses


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_values_and_gradient(monkeypatch, weight, at_once):
    monkeypatch.setattr(losses, "_AT_ONCE", at_once)
    torch.manual_seed(0)
    logits, teacher = (3 * torch.randn(5, 7, 11) for _ in range(2))
    tokens = torch.randint(11, (5, 7))
    fused, plain = (logits.clone().requires_grad_() for _ in range(2))
    loss, entropy, divergence = next_token_losses(fused, tokens, teacher if weight else None, weight)
    (2 * loss).backward()
    log_p = plain[:, :-1].log_softmax(-1)
    expected_entropy = F.nll_loss(log_p.flatten(0, 1), tokens[:, 1:].flatten())
    log_q = teacher[:, :-1].log_softmax(-1).flatten(0, 1)
    expected_divergence = F.kl_div(log_p.flatten(0, 1), log_q, reduction="batchmean", log_target=True)
    expected = (1 - weight) * expected_entropy + weight * expected_divergence
    (2 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert entropy.item() == pytest.approx(expected_entropy.item(), rel=1e-5)
    assert divergence.item() == pytest.approx(expected_divergence.item() if weight else 0, rel=1e-5)
    assert torch.allclose(fused.grad, plain.grad, atol=1e-7)


def test_bfloat16_logits_keep_their_type():
    logits = torch.randn(2, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    loss, *_ = next_token_losses(logits, torch.zeros(2, 4, dtype=torch.int64), None, 0.0)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16


def test_default_rates_fall_with_width_and_projection_with_depth():
    project, prune = (CompressConfig().replace(method=method, optimizer="adamw") for method in ("project", "prune"))
    assert (project.rate(64, 5), prune.rate(64, 5)) == (2**-8, 2**-7)  # the best of the sweep
    assert project.rate(128, 5) == project.rate(128, 3) == project.rate(64, 5) / 2
    assert project.rate(64, 20) == project.rate(64, 5) / 2 and prune.rate(64, 20) == prune.rate(64, 5)
    assert project.replace(lr=0.3).rate(64, 20) == 0.3
