"""A language model that is left in its files: each module reads its parameters when it runs, and drops them after it.

So any code that runs a model works on one that is larger than the memory: it takes the largest parameter and the
activations. Numbers are those of the loaded model, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.tensors import StoredTensors
from .axes import build_empty
from .causal import PretrainedFolder, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_FILES = "projkern_parameters"


class _Parameters(Mapping[str, Tensor]):
    """Stored tensors by the names of a model's parameters, of one type, on one device."""

    def __init__(self, stored: StoredTensors, device: torch.device, dtype: torch.dtype) -> None:
        self.stored, self.device, self.dtype = stored, device, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self.stored.read(name, self.dtype).to(self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def parameters_of(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """The parameters of a model by name; those of a stored one are read when they are asked for."""
    stored: Mapping[str, Tensor] | None = vars(model).get(_FILES)
    return dict(model.named_parameters()) if stored is None else stored


def is_stored(model: PreTrainedModel) -> bool:
    """Whether a model is one of ``open_stored``."""
    return _FILES in vars(model)


def open_stored(folder: PretrainedFolder, device: torch.device, dtype: torch.dtype) -> PreTrainedModel | None:
    """The model of a folder, left in its files, in evaluation mode; None where they have other names than its class.

    Args:
        device: where it runs.
        dtype: that it runs in.

    Raises:
        InputError: weights that are damaged, incomplete, or of another shape.
    """
    empty = build_empty(folder.config)
    tensors = StoredTensors.of_folder(folder.folder)
    places = _places(empty, tensors)
    if places is None:
        return None
    stored = tensors.renamed(places)
    for name, parameter in empty.named_parameters():
        if (shape := stored.shape(name)) != parameter.shape:
            raise InputError(
                f"{folder.folder} must hold every parameter; {name} is {tuple(shape)} in place of "
                f"{tuple(parameter.shape)}"
            )
    model = _model(folder.config, _Parameters(stored, device, dtype))
    model.generation_config = folder.generation_config() or model.generation_config
    return model


def with_names(model: PreTrainedModel, config: PreTrainedConfig, names: Mapping[str, str]) -> PreTrainedModel:
    """A stored model of another configuration, whose parameters are some of another stored model's.

    Args:
        names: of its parameters, each with the name that it has in ``model``.
    """
    parameters = parameters_of(model)
    assert isinstance(parameters, _Parameters)
    stored = parameters.stored.renamed(names)
    other = _model(config, _Parameters(stored, parameters.device, parameters.dtype))
    other.generation_config = model.generation_config
    return other


def _places(model: PreTrainedModel, tensors: StoredTensors) -> dict[str, str] | None:
    """The tensor of each parameter: by its name or that of a tied one, with or without the base model's prefix."""
    prefix = f"{model.base_model_prefix}."
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    places = {}
    for names in tied.values():
        found = next((n for name in names for n in (name, name.removeprefix(prefix)) if n in tensors), None)
        if found is None:
            return None
        places[names[0]] = found
    return places


def _model(config: PreTrainedConfig, parameters: _Parameters) -> PreTrainedModel:
    """A model that reads its parameters when it runs; NaN, which takes no memory, is in their place until then."""
    empty = build_empty(config)
    nothing = torch.full((), torch.nan, dtype=parameters.dtype, device=parameters.device)
    state = {name: nothing.expand(p.shape) for name, p in empty.named_parameters()}
    with quiet_transformers():
        model: PreTrainedModel = type(empty).from_pretrained(
            None, config=copy.deepcopy(config), state_dict=state, dtype=parameters.dtype
        )
    model.config.name_or_path = config.name_or_path  # which is the name of a folder, and there is none
    model.to(parameters.device).eval().requires_grad_(False)  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False)}
        if own:
            _read_when_run(module, own, parameters)
    vars(model)[_FILES] = parameters
    return model


def _read_when_run(module: nn.Module, names: dict[str, str], parameters: Mapping[str, Tensor]) -> None:
    absent = {key: module.get_parameter(key) for key in names}

    def enter(module: nn.Module, arguments: Any) -> None:
        for key, name in names.items():
            setattr(module, key, nn.Parameter(parameters[name], requires_grad=False))

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        for key, placeholder in absent.items():
            setattr(module, key, placeholder)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
