"""Fitted models as one .safetensors file: tensors, and the settings in its header. No pickle.

Models of several files keep their settings in a JSON file beside them.
"""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.files import atomic_write
from nnlib._common.runtime import resolve_device
from nnlib.attention import Kernel, kernels

FORMAT = "nnlib.1"
COLUMNS = {"feature_names_in_"}


class ModelError(OSError):
    """A file that can't be read as the model that was asked for."""


class SafetensorsMixin:
    """Saving and loading for an estimator whose fit left tensors and plain attributes, named in its class."""

    saved_attributes = ("n_features_in_",)
    saved_tensors = ("centers_", "values_")

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one .safetensors file, whole or not at all.

        What a fit tells of itself, such as `growth_` or `losses_`, stays behind. Raises NotFittedError before a fit,
        OSError where `path` can't be written.
        """
        check_is_fitted(self, msg="This %(name)s instance is not fitted yet: call fit or load one")
        told = {
            "settings": {
                name: to_json(value) for name, value in self.get_params(deep=False).items()
            },
            "attributes": {name: to_json(getattr(self, name)) for name in self._attributes()},
        }
        header = {"format": FORMAT, "class": type(self).__name__, "told": json.dumps(told)}
        tensors = {name: part.contiguous() for name, part in self._tensors().items()}
        with atomic_write(path) as part:
            save_file(tensors, part, header)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto"):
        """Read a model that `save` wrote, onto the device.

        Raises ModelError, naming the file and what is wrong with it, for one that is missing, truncated or foreign.
        """
        device = str(resolve_device(device))
        try:
            with safe_open(path, "pt", device=device) as file:
                header = file.metadata() or {}
                _require_class(header, cls.__name__, path)
                # cloned: where rows begin in the file, products would be summed in another order than before the save
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            told = json.loads(header["told"])
            model = cls(**{name: from_json(value) for name, value in told["settings"].items()})
            for name in (*cls.saved_attributes, *(COLUMNS & told["attributes"].keys())):
                setattr(model, name, from_json(told["attributes"][name]))
            model._restore(tensors)
            return model
        except ModelError:
            raise
        except (
            SafetensorError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
        ) as error:
            raise ModelError(
                f"path={str(path)!r} can't be read as a {cls.__name__} ({type(error).__name__}: {error}): "
                "give a file that its save() wrote"
            ) from None

    def _attributes(self) -> list[str]:
        """What is written beside the tensors; columns' names where a frame was fitted on."""
        return [*self.saved_attributes, *(name for name in COLUMNS if hasattr(self, name))]

    def _tensors(self) -> dict[str, Tensor]:
        """What is written: each tensor under its attribute's name, less the underscore."""
        return {name.rstrip("_"): getattr(self, name) for name in self.saved_tensors}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was read; raises ValueError where tensors don't belong together."""
        for name in self.saved_tensors:
            setattr(self, name, tensors[name.rstrip("_")])


def write_settings(path: Path, kind: str, settings: dict) -> None:
    """Write what a model of the class `kind` was made with, as JSON, for `read_settings`."""
    told = {"format": FORMAT, "class": kind, "settings": settings}
    path.write_text(json.dumps(told, indent=1, default=to_json), encoding="utf-8")


def read_settings(path: Path, kind: str) -> dict:
    """The settings in such a file; raises ModelError where it is missing, broken, or of another class."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"path={str(path)!r} can't be read ({type(error).__name__}: {error}): give a folder that {kind}.save wrote"
        ) from None
    whole = isinstance(header, dict) and isinstance(header.get("settings"), dict)
    _require(whole, path, "holds no settings")
    _require_class(header, kind, path)
    return header["settings"]


def _require_class(header: dict, kind: str, path) -> None:
    for name, wanted in (("format", FORMAT), ("class", kind)):
        _require(
            header.get(name) == wanted, path, f"has the {name} {header.get(name)!r}, not {wanted!r}"
        )


def to_json(value):
    """A value as JSON can hold it: kernels by name and fields, arrays by type and list."""
    if isinstance(value, Kernel):
        fields = {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
        return {"kernel": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray):
        return {
            "array": value.tolist(),
            "type": value.dtype.str if value.dtype != object else "object",
        }
    return value.item() if isinstance(value, np.generic) else value


def from_json(value):
    if isinstance(value, dict) and "kernel" in value:
        kind = getattr(kernels, value["kernel"])
        if not (isinstance(kind, type) and issubclass(kind, Kernel)):
            raise ValueError(f"kernel {value['kernel']!r} is not one")
        return kind(**{name: from_json(field) for name, field in value["fields"].items()})
    if isinstance(value, dict):
        return np.array(value["array"], dtype=value["type"])
    return value


def _require(holds: bool, path, found: str) -> None:
    if not holds:
        raise ModelError(
            f"path={str(path)!r} {found}: give a file that save() of this class and version wrote"
        )
