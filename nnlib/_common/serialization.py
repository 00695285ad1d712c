"""Fitted models as one .safetensors file: tensors, and settings as JSON in its header."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
OLD_SETTINGS = {  # None: gone, and of no use to a fitted model
    "DynamicClassifier": {"condensing": None},
    "NCATransformer": {"products": "matmul_dtype"},
    "PatchFeatures": {"products": "matmul_dtype"},
    "PrototypeClassifier": {"count": "n_prototypes", "start": None},
    "UniformKNN": {"count": "k", "by": "base"},
}
COLUMNS = "feature_names_in_"  # where it was fitted on a frame
FOREIGN = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
UNREADABLE = (SafetensorError, OSError, *FOREIGN)


class Registered:
    """Base of classes that files name: each subclass is found again by its name."""

    subclasses: dict[str, type] = {}

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        Registered.subclasses[cls.__name__] = cls


class SafetensorsMixin(Registered):
    """Saving and loading of an estimator, whose class names the tensors and attributes of its fit.

    A model made of others gives them in `_submodels` and takes them over in `_restore_submodels`.
    """

    saved_attributes: tuple[str, ...] = ("n_features_in_",)
    saved_tensors: tuple[str, ...] = ("centers_", "values_")

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one .safetensors file, whole or not at all.

        A fit's history, such as `growth_` or `losses_`, is not saved. Raises NotFittedError before
        a fit, OSError where `path` can't be written.
        """
        check_is_fitted(self, msg="This %(name)s instance is not fitted yet: call fit or load one")
        metadata = json.dumps(self._metadata())
        header = {"format": FORMAT, "class": type(self).__name__, "metadata": metadata}
        tensors = {name: part.contiguous() for name, part in self._all_tensors().items()}
        with atomic_write(path) as part:
            save_file(tensors, part, header)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto"):
        """Read a model that `save` wrote, onto the device.

        Raises ModelError, naming the file and what is wrong with it, for one that is missing,
        truncated or foreign.
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
                _check_header(header, cls.__name__, path)
                # Copies: products over rows that begin elsewhere in memory would round otherwise.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = json.loads(header["metadata" if "metadata" in header else "told"])
            return cls._from_metadata(metadata, tensors)
        except ModelError:
            raise
        except UNREADABLE as error:
            raise ModelError(
                f"path={str(path)!r} can't be read as a {cls.__name__} "
                f"({type(error).__name__}: {error}): give a file that its save() wrote"
            ) from None

    def _metadata(self) -> dict:
        settings = self.get_params(deep=False)
        submodels = self._submodels()
        attributes = list(self.saved_attributes)
        if hasattr(self, COLUMNS):
            attributes.append(COLUMNS)
        return {
            "class": type(self).__name__,
            "settings": {name: to_json(value) for name, value in settings.items()},
            "attributes": {name: to_json(getattr(self, name)) for name in attributes},
            "submodels": {name: model._metadata() for name, model in submodels.items()},
        }

    @classmethod
    def _from_metadata(cls, metadata: dict, tensors: dict[str, Tensor]):
        settings = _current_settings(cls.__name__, metadata["settings"])
        model = cls(**{name: from_json(value) for name, value in settings.items()})
        attributes = metadata["attributes"]
        for name in {*cls.saved_attributes} | (attributes.keys() & {COLUMNS}):
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
        """The tensors to write, under their attributes' names less the underscore."""
        return {name.rstrip("_"): getattr(self, name) for name in self.saved_tensors}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was read; raises ValueError where tensors don't belong together."""
        for name in self.saved_tensors:
            setattr(self, name, tensors[name.rstrip("_")])

    def _submodels(self) -> dict[str, "SafetensorsMixin"]:
        """Fitted models that this one is made of, in their order, by names without dots."""
        return {}

    def _restore_submodels(self, submodels: dict[str, "SafetensorsMixin"]) -> None:
        """Take over the models that were read, before `_restore`."""


def to_json(value):
    """A value as JSON can hold it: kernels and unfitted models by name, arrays by type and list."""
    if isinstance(value, SafetensorsMixin):
        settings = value.get_params(deep=False).items()
        fields = {name: to_json(setting) for name, setting in settings}
        return {"estimator": type(value).__name__, "settings": fields}
    if isinstance(value, Registered):
        own = vars(type(value))
        if "__dataclass_fields__" not in own and ("__init__" in own or "__annotations__" in own):
            name = type(value).__name__
            raise TypeError(f"{name} can't be saved: decorate it with @dataclass(frozen=True)")
        fields = {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
        return {"kernel": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray):
        dtype = "object" if value.dtype == object else value.dtype.str
        return {"array": value.tolist(), "type": dtype}
    return value.item() if isinstance(value, np.generic) else value


def from_json(value):
    """What `to_json` was given."""
    if isinstance(value, dict) and "estimator" in value:
        kind = _registered(value["estimator"], SafetensorsMixin)
        return kind(**{name: from_json(field) for name, field in value["settings"].items()})
    if isinstance(value, dict) and "kernel" in value:
        kind = _registered(value["kernel"], Registered)
        fields = _current_settings(kind.__name__, value["fields"])
        return kind(**{name: from_json(field) for name, field in fields.items()})
    if isinstance(value, dict):
        return np.array(value["array"], dtype=value["type"])
    return value


def _registered(name: str, base: type) -> type:
    kind = Registered.subclasses.get(OLD_CLASSES.get(name, name))
    if kind is None or not issubclass(kind, base):
        raise ValueError(f"class {name!r} is unknown: import the module that defines it first")
    return kind


def _current_settings(kind: str, settings: dict) -> dict:
    renamed = dict(OLD_SETTINGS.get(kind, {}))
    if kind != "ContextModel":
        renamed["seed"] = "random_state"
    current = {renamed.get(name, name): value for name, value in settings.items()}
    current.pop(None, None)
    return current


def _check_header(header: dict, kind: str, path: str | Path) -> None:
    found = header.get("class")
    version = header.get("format")
    if version not in (FORMAT, OLD_FORMAT):
        wrong = f"the format {version!r}, not {FORMAT!r}"
    elif OLD_CLASSES.get(found, found) != kind:
        wrong = f"the class {found!r}, not {kind!r}"
    else:
        return
    wanted = "give a file that save() of this class and version wrote"
    raise ModelError(f"path={str(path)!r} has {wrong}: {wanted}")
