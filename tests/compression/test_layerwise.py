"""Layer by layer, the same inputs are gathered as by running the whole model."""

import pytest
import torch
from decoders import FAMILIES, decoder

from projkern.compression.importance import gather_inputs, gathering
from projkern.compression.layerwise import LayerRun
from projkern.models.huggingface.axes import Sizes, find_axes, layer_of


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_gathered_is_the_same(family):
    model = decoder(family)
    axes = find_axes(model.config, Sizes(32, 56, 3))
    batches = list(torch.arange(48).view(4, 12).split(2))
    expected = gather_inputs(model, axes, batches, moments=axes)
    run, passed = LayerRun(model, batches), []
    with gathering(model, axes, moments=axes) as inputs:
        for name in run:
            assert {layer_of(n) for n in inputs.moments} <= {*passed, name}  # of no layer before its turn
            passed.append(name)
            for parameter in [n for n in inputs.moments if layer_of(n) == name]:
                assert torch.equal(inputs.moments.pop(parameter), expected.moments[parameter]), parameter
                assert torch.equal(inputs.sums[parameter], expected.sums[parameter]), parameter
    assert not inputs.moments and inputs.sums.keys() == expected.sums.keys()
    assert passed == [*run.layers, ""]
    with torch.no_grad():
        model(batches[0])  # it is as it was
