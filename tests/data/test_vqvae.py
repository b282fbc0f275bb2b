"""The VQ-VAE of images, and its training."""

import pytest
import torch
import torch.nn.functional as F
from image_files import pictures

from projkern.data import VQVAE
from projkern.data.vqvae import DECAY, Codebook, usage
from projkern.tokenization import training as tokenizer
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VQVAE(8)


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trained_once(model, seed=0):
    return model.losses(IMAGES, torch.Generator().manual_seed(seed))


def test_shapes_are_those_of_appendix_c2(model):
    layers = [layer for layer in (*model.encoder, *model.decoder) if hasattr(layer, "weight")]
    shapes = [(layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in layers]
    assert shapes[:3] == [(32, 3, 2), (64, 3, 1), (64, 3, 1)]
    assert shapes[3:] == [(64, 3, 2), (64, 3, 1), (32, 3, 1), (3, 1, 1)]
    trained_once(model)
    tokens = model.encode(IMAGES)
    assert tokens.shape == (3, 16) and tokens.dtype == torch.int64 and 0 <= tokens.min() <= tokens.max() < 8
    assert model.decode(tokens).shape == IMAGES.shape and model.decode(tokens).abs().max() <= 1


def test_tokens_are_the_nearest_codes(model):
    trained_once(model)
    z = model.encoder(IMAGES).movedim(1, -1).double()
    distance = (z[..., None, :] - model.codebook.vectors.double()).square().sum(-1)
    assert torch.equal(model.encode(IMAGES), distance.argmin(-1).flatten(1))


def test_all_codes_start_from_outputs_of_the_first_batch(model):
    outputs = model.encoder(IMAGES).detach().movedim(1, -1).flatten(0, 2)
    model.codebook.revive(outputs, torch.Generator().manual_seed(0))
    taken = (model.codebook.vectors[:, None] == outputs).all(-1)  # [codes, outputs]
    assert bool(taken.any(1).all()) and bool((model.codebook.counts == 48 / 8).all())


def test_only_dead_codes_start_afresh():
    book = Codebook(4)
    outputs = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    book.counts[:] = torch.tensor([10.0, 0.51, 0.49, 3.0])  # an even share is 10, and 0.05 of it 0.5
    book.vectors[:], book.sums[:] = 7.0, 70.0
    book.revive(outputs, torch.Generator().manual_seed(0))
    assert book.counts.tolist() == [10.0, pytest.approx(0.51), 10.0, 3.0]
    assert bool((book.vectors[[0, 1, 3]] == 7).all()) and bool((book.sums[[0, 1, 3]] == 70).all())
    assert bool((outputs == book.vectors[2]).all(1).any()) and torch.equal(book.sums[2], 10 * book.vectors[2])


def test_moving_averages_against_a_direct_computation():
    book, generator = Codebook(5), torch.Generator().manual_seed(3)
    book.counts[:] = torch.rand(5, generator=generator) + 1
    book.sums[:] = torch.randn(5, 64, generator=generator)
    counts, sums = book.counts.double().tolist(), book.sums.double().clone()
    for _ in range(3):
        outputs = torch.randn(20, 64, generator=generator)
        tokens = torch.randint(4, (20,), generator=generator)  # code 4 is never chosen
        book.follow(outputs, tokens)
        for k in range(5):
            chosen = outputs[tokens == k].double()
            counts[k] = DECAY * counts[k] + (1 - DECAY) * len(chosen)
            sums[k] = DECAY * sums[k] + (1 - DECAY) * chosen.sum(0)
    assert torch.allclose(book.counts.double(), torch.tensor(counts, dtype=torch.float64))
    expected = sums / torch.tensor(counts)[:, None]
    assert torch.allclose(book.vectors.double(), expected, rtol=1e-5, atol=1e-6)


def test_gradient_passes_straight_through(model):
    """What reaches the encoder's output is the gradient at the codes, plus that of the commitment."""
    trained_once(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    held = []
    model.encoder.register_forward_hook(lambda module, inputs, z: z.retain_grad() or held.append(z))
    reconstruction, commitment, tokens = trained_once(model)
    reconstruction.backward(retain_graph=True)
    straight = held[0].grad.clone()
    e = state["codebook.vectors"][tokens].view(3, 4, 4, 64).movedim(-1, 1).requires_grad_()
    F.mse_loss(model.decoder(e), IMAGES).backward()
    assert straight.abs().max() > 0 and torch.allclose(straight, e.grad, rtol=1e-4, atol=1e-9)
    held[0].grad = None
    commitment.backward()
    z = held[0].detach()
    assert torch.allclose(held[0].grad, 2 * (z - e.detach()) / z.numel(), atol=1e-9)
    assert not any(buffer.requires_grad for buffer in model.codebook.buffers())


def test_saved_and_loaded(model, tmp_path):
    trained_once(model)
    model.save(tmp_path / "v.safetensors")
    loaded = VQVAE.load(tmp_path / "v.safetensors")
    assert torch.equal(loaded.encode(IMAGES), model.encode(IMAGES))
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]
    (tmp_path / "v.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="damaged"):
        VQVAE.load(tmp_path / "v.safetensors")


def test_wrong_shapes(model):
    for shape in ((3, 8, 8), (1, 3, 8, 6), (1, 3, 7, 7), (1, 1, 8, 8)):
        with pytest.raises(InputError, match=r"images must be \(B, 3, S, S\) with an even S"):
            model.encode(torch.zeros(shape))
    with pytest.raises(InputError, match="T a square"):
        model.decode(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="codes must be at least 2; it was 1"):
        VQVAE(1)


def test_usage():
    used, perplexity = usage(torch.tensor([5, 5, 0, 0]))
    assert used == 0.5 and perplexity == pytest.approx(2)


def train(out, steps=7, seed=0):
    return tokenizer.train_tokenizer(
        torch.from_numpy(pictures(20, 8)), out, 16, steps, 4, 1e-3, seed, torch.device("cpu")
    )


def test_resume_is_never_stopped_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "CHECKPOINT_EVERY", 2)
    whole = train(tmp_path / "whole")
    calls, save = [], tokenizer.checkpoint.save

    def stop_after_two(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer.checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped" / "checkpoint").iterdir()] == ["step-00000004"]
    torch.manual_seed(123)
    resumed = train(tmp_path / "stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    other = train(tmp_path / "other", seed=1)
    assert not torch.equal(other.codebook.vectors, whole.codebook.vectors)


def test_training_learns(tmp_path):
    pixels = torch.from_numpy(pictures(20, 8))
    images = tokenizer.to_model(pixels, torch.device("cpu"))
    errors = []
    for steps in (1, 150):
        model = tokenizer.train_tokenizer(pixels, tmp_path / str(steps), 16, steps, 8, 3e-3, 0, torch.device("cpu"))
        errors.append(float(F.mse_loss(model.decode(model.encode(images)), images)))
    assert errors[1] < 0.5 * errors[0]


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    with pytest.raises(tokenizer.Diverged, match="not finite at step .*lr must be lower; it was 1e"):
        tokenizer.train_tokenizer(torch.from_numpy(pictures(4, 8)), tmp_path, 4, 60, 4, 1e30, 0, torch.device("cpu"))
