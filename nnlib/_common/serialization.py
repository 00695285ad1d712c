"""Fitted models as one .safetensors file: tensors, and settings as JSON in its header."""

import json
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.files import atomic_write
from nnlib._common.runtime import resolve_device
from nnlib.errors import ModelError

FORMAT = "nnlib.2"
OLD_FORMAT = "nnlib.1"  # the same file, with some classes and settings under older names
OLD_CLASSES = {
    "KNearest": "UniformKNN",
    "LearnedCenters": "PrototypeClassifier",
    "LearnedMetric": "NCATransformer",
}
OLD_SETTINGS: dict[str, dict[str, str | None]] = {  # None: gone, and of no use to a fitted model
    "DynamicClassifier": {"condensing": None},
    "NCATransformer": {"products": "matmul_dtype"},
    "PatchFeatures": {"products": "matmul_dtype"},
    "PrototypeClassifier": {"count": "n_prototypes", "start": None},
    "UniformKNN": {"count": "k", "by": "base"},
}
COLUMNS = "feature_names_in_"  # where it was fitted on a frame
FOREIGN = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
UNREADABLE = (SafetensorError, OSError, *FOREIGN)
Kind = TypeVar("Kind")


class Registered:
    """Base of classes that files name: each subclass is found again by its name."""

    subclasses: dict[str, type] = {}

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        Registered.subclasses[class_name(cls)] = cls


def class_name(kind: type) -> str:
    """The name of a class in files: a user's own with its module, which has to be imported."""
    own = kind.__module__.partition(".")[0] == "nnlib"
    return kind.__name__ if own else f"{kind.__module__}:{kind.__qualname__}"


class SafetensorsMixin(Registered, BaseEstimator):
    """Saving and loading of an estimator, whose class names the tensors and attributes of its fit.

    A model made of others gives them in `_submodels` and takes them over in `_restore_submodels`.
    A fit that raises leaves the model as it was. A state_dict of torch's holds what a file does.
    """

    saved_attributes: tuple[str, ...] = ("n_features_in_",)
    saved_tensors: tuple[str, ...] = ("centers_", "values_")

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name in ("fit", "partial_fit"):
            if name in vars(cls):
                setattr(cls, name, _whole_or_not(vars(cls)[name]))

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one .safetensors file, whole or not at all.

        A fit's history, such as `growth_` or `losses_`, is not saved. Raises NotFittedError before
        a fit, OSError where `path` can't be written, TypeError for settings that JSON can't hold.
        """
        check_is_fitted(self, msg="This %(name)s instance is not fitted yet: call fit or load one")
        folder = Path(path).parent
        if not folder.is_dir():
            wrong = f"{str(folder)!r} is no folder"
            raise OSError(f"path={str(path)!r} can't be written ({wrong}): make it first")
        metadata = json.dumps(self._metadata())
        header = {"format": FORMAT, "class": class_name(type(self)), "metadata": metadata}
        whole = torch.contiguous_format  # copies, as two tensors may share their memory
        parts = self._all_tensors().items()
        tensors = {name: part.clone(memory_format=whole) for name, part in parts}
        with atomic_write(path) as part:
            save_file(tensors, part, header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "auto"):
        """Read a model that `save` wrote, onto the device.

        Raises ModelError, naming the file and what is wrong with it, for one that is missing,
        truncated or foreign, or holds NaN. A kernel of one's own has to be imported before.
        """
        device = str(resolve_device(device))
        if Path(path).is_dir():
            raise ModelError(
                f"path={str(path)!r} is a folder, as stacks were saved in the format {OLD_FORMAT}, "
                "which nnlib 0.1 reads: give a file, or fit anew"
            )
        try:
            with safe_open(path, "pt", device=device) as file:
                header = file.metadata() or {}
                _check_header(header, cls.__name__)
                # Copies: products over rows that begin elsewhere in memory would round otherwise.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            for name, part in tensors.items():
                if not part.isfinite().all():
                    raise ValueError(f"NaN or infinity in the tensor {name!r}")
            metadata = json.loads(header["metadata" if "metadata" in header else "told"])
            return cls._from_metadata(metadata, tensors)
        except UNREADABLE as error:
            raise ModelError(
                f"path={str(path)!r} can't be read as a {cls.__name__} "
                f"({type(error).__name__}: {error}): give a file that its save() wrote"
            ) from None

    def get_extra_state(self) -> dict | None:
        """What a state_dict of torch's holds beside parameters and buffers, None before a fit."""
        if not hasattr(self, "n_features_in_"):
            return None
        return {"metadata": json.dumps(self._metadata()), "tensors": self._all_tensors()}

    def set_extra_state(self, state: dict | None) -> None:
        """Do nothing: it is taken over before parameters and buffers are."""

    def _load_from_state_dict(self, state: dict, prefix: str, *options) -> None:
        """Make what a fit makes, whose shapes the state has, then take over its numbers."""
        fitted = state.setdefault(f"{prefix}_extra_state", None)
        if fitted is not None:
            tensors = {name: part.clone() for name, part in fitted["tensors"].items()}
            model = self._from_metadata(json.loads(fitted["metadata"]), tensors)
            for name, value in {**vars(model), **model._buffers, **model._modules}.items():
                if name.endswith("_"):
                    setattr(self, name, value)
        super()._load_from_state_dict(state, prefix, *options)

    def _metadata(self) -> dict:
        settings = self.get_params(deep=False)
        submodels = self._submodels()
        attributes = list(self.saved_attributes)
        if hasattr(self, COLUMNS):
            attributes.append(COLUMNS)
        return {
            "class": class_name(type(self)),
            "settings": {name: to_json(value, name) for name, value in settings.items()},
            "attributes": {name: to_json(getattr(self, name), name) for name in attributes},
            "submodels": {name: model._metadata() for name, model in submodels.items()},
        }

    @classmethod
    def _from_metadata(cls, metadata: dict, tensors: dict[str, Tensor]):
        settings = _current_settings(cls.__name__, metadata["settings"])
        model = cls(**{name: from_json(value) for name, value in settings.items()})
        attributes = metadata["attributes"]
        for name in {*cls.saved_attributes} | (attributes.keys() & {COLUMNS}):
            if name in attributes or not hasattr(cls, name):  # which an older file may lack
                setattr(model, name, from_json(attributes[name]))
        submodels = {}
        for name, described in metadata.get("submodels", {}).items():
            start = f"{name}."
            own = [key for key in tensors if key.startswith(start)]
            part = {key.removeprefix(start): tensors.pop(key) for key in own}
            kind = _registered(described["class"], SafetensorsMixin)
            submodels[name] = kind._from_metadata(described, part)
        if submodels:
            model._restore_submodels(submodels)
        model._restore(tensors)
        return model

    def _all_tensors(self) -> dict[str, Tensor]:
        tensors = dict(self._tensors())
        for name, model in self._submodels().items():
            tensors |= {f"{name}.{key}": part for key, part in model._all_tensors().items()}
        return tensors

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors to write, under their attributes' names less the underscore; no None."""
        parts = {name.rstrip("_"): getattr(self, name) for name in self.saved_tensors}
        return {name: part for name, part in parts.items() if part is not None}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was read; raises ValueError where tensors don't belong together."""
        for name in self.saved_tensors:
            key = name.rstrip("_")
            if key in tensors or not hasattr(self, name):  # which is None before a fit
                setattr(self, name, tensors[key])

    def _submodels(self) -> dict[str, "SafetensorsMixin"]:
        """Fitted models that this one is made of, in their order, by names without dots."""
        return {}

    def _restore_submodels(self, submodels: dict[str, "SafetensorsMixin"]) -> None:
        """Take over the models that were read, before `_restore`."""


def _whole_or_not(fit: Callable) -> Callable:
    """Let a fit that raises leave the model as it was."""

    @wraps(fit)
    def fit_or_restore(self, *args, **options):
        held = vars(self).items()  # torch holds buffers and modules in dictionaries
        before = {name: copy(value) if isinstance(value, dict) else value for name, value in held}
        try:
            return fit(self, *args, **options)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fit_or_restore


def to_json(value, name: str = "value"):
    """A value as JSON can hold it: kernels and unfitted models by name, arrays by type and list."""
    if isinstance(value, SafetensorsMixin):
        settings = value.get_params(deep=False).items()
        held = {key: to_json(setting, f"{name}.{key}") for key, setting in settings}
        return {"estimator": class_name(type(value)), "settings": held}
    if isinstance(value, Registered):
        kind = type(value)
        own = vars(kind)
        plain = "__dataclass_fields__" in own or not {"__init__", "__annotations__"} & own.keys()
        if not plain or not is_dataclass(value):
            wanted = "decorate it with @dataclass(frozen=True)"
            raise TypeError(f"{kind.__name__} can't be saved: {wanted}")
        names = [field.name for field in fields(value)]
        held = {key: to_json(getattr(value, key), f"{name}.{key}") for key in names}
        return {"kernel": class_name(kind), "fields": held}
    if isinstance(value, np.ndarray):
        dtype = "object" if value.dtype == object else value.dtype.str
        numbers = value.astype(np.int64) if value.dtype.kind in "mM" else value
        return {"array": to_json(numbers.tolist(), name), "type": dtype}
    if isinstance(value, list | tuple):
        return [to_json(part, name) for part in value]
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    value = str(value) if isinstance(value, torch.device) else value
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{name}={value!r:.60} can't be saved: give numbers, words or a kernel")


def from_json(value):
    """What `to_json` was given."""
    if isinstance(value, dict) and "estimator" in value:
        kind = _registered(value["estimator"], SafetensorsMixin)
        return kind(**{name: from_json(field) for name, field in value["settings"].items()})
    if isinstance(value, dict) and "kernel" in value:
        kind = _registered(value["kernel"], Registered)
        settings = _current_settings(kind.__name__, value["fields"])
        return kind(**{name: from_json(field) for name, field in settings.items()})
    if isinstance(value, dict):
        return np.array(value["array"], dtype=value["type"])
    return value


def _registered(name: str, base: type[Kind]) -> type[Kind]:
    """The class of that name, which is known once its module is imported: files import nothing."""
    name = OLD_CLASSES.get(name, name)
    kind = Registered.subclasses.get(name)
    module, _, short = name.rpartition(":")
    if kind is None and module in ("", "__main__"):  # written before modules were, or by a script
        found = [each for each in Registered.subclasses.values() if each.__name__ == short]
        kind = found[0] if len(found) == 1 else None
    if kind is None or not issubclass(kind, base):
        raise ValueError(f"class {name!r} is unknown: import the module that defines it first")
    return kind


def _current_settings(kind: str, settings: dict) -> dict:
    renamed = dict(OLD_SETTINGS.get(kind, {}))
    if kind != "ContextModel":
        renamed["seed"] = "random_state"
    if kind.startswith("Dynamic"):
        settings = {"rule": "published"} | settings  # the only one, while files did not say it
    current = {renamed.get(name, name): value for name, value in settings.items()}
    current.pop(None, None)
    return current


def _check_header(header: dict, kind: str) -> None:
    found = str(header.get("class"))
    name = found.replace(":", ".").rpartition(".")[2]
    version = header.get("format")
    if version not in (FORMAT, OLD_FORMAT):
        raise ValueError(f"it has the format {version!r}, not {FORMAT!r}")
    if OLD_CLASSES.get(name, name) != kind:
        raise ValueError(f"it has the class {found!r}, not {kind!r}")
