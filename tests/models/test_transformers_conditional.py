"""The conditional form of transformers models: where t enters, and the model with one t put in."""

import pytest
import torch
from decoders import FAMILIES, decoder

from projkern.models.huggingface.conditional import ConditionalModel
from projkern.models.huggingface.operator import predict, start_token, with_start
from projkern.models.layout import CONDITIONINGS
from projkern.utils.errors import InputError


def conditional(family, conditioning, is_random=True):
    torch.manual_seed(0)
    model = ConditionalModel(decoder(family), 3, conditioning, t_mean=0.2, t_std=0.5)
    if is_random:
        with torch.no_grad():
            for module in (model.offset, model.vectors):
                for p in () if module is None else module.parameters():
                    p += 0.3 * torch.randn_like(p)
    return model.eval()


def batch(model):
    tokens = torch.randint(3, model.model.config.vocab_size, (4, 6))
    tokens[1, 2] = start_token(model.model)  # a text may end and another begin within a window
    return tokens, torch.rand(2, 3)[[0, 1, 0, 1]]


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_with_one_t_put_in_it_is_the_same_model(family, conditioning):
    model = conditional(family, conditioning)
    tokens, t = batch(model)
    with torch.no_grad():
        logits = model(tokens, t)
        assert not torch.allclose(logits[0], model(tokens, t.flip(0))[0], atol=1e-3)  # t matters
        for i in range(2):
            special = model.specialised(t[i])
            torch.testing.assert_close(predict(special, tokens[i : i + 1]), logits[i : i + 1], atol=1e-4, rtol=1e-4)
    prompt = with_start(tokens[:1], start_token(model.model))
    written = model.specialised(t[0]).generate(prompt, do_sample=False, min_new_tokens=2, max_new_tokens=2)
    with torch.no_grad():
        whole = predict(model.specialised(t[0]), torch.cat([written[:, 1:], written[:, -1:]], 1))[0, :-1]
    assert written[0, -1] == whole[-1].argmax()  # with keys and values kept, as without


@pytest.mark.parametrize("conditioning", ["every", "norms"])
def test_at_the_start_the_stronger_forms_are_the_first(conditioning):
    first, stronger = (conditional("qwen2", form, is_random=False) for form in ("first", conditioning))
    stronger.start.load_state_dict(first.start.state_dict())
    tokens, t = batch(first)
    with torch.no_grad():
        torch.testing.assert_close(stronger(tokens, t), first(tokens, t), atol=1e-5, rtol=1e-5)


def test_every_parameter_is_trained():
    model = conditional("qwen2", "norms")
    model(*batch(model)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match="conditioning must be"):
        ConditionalModel(decoder("llama"), 3, "all")
    model = conditional("llama", "first")
    with pytest.raises(InputError, match="t must be"):
        model(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 4))
    with pytest.raises(InputError, match="t must be"):
        model.specialised(torch.zeros(1, 3))
