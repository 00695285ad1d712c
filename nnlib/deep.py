"""The published stack: layers of dynamic classifiers, each fitted on the outputs of the one before."""

from nnlib.checks import require_count
from nnlib.inputs import features_of
from nnlib.kernels import Kernel
from nnlib.layers import Layered, passed
from nnlib.neighbors import DynamicClassifier


class DeepClassifier(Layered):
    """`num_layers` DynamicClassifiers, each fitted on the class probabilities that the one before gives the same data.

    splits: for the next layer, a layer's centers stand in so many groups (contiguous, nearly equal, in the order they
    were added) of one probability vector each: splits x classes features. The prediction is the last layer's, by all
    its centers. The other settings are each layer's; changed later, they hold from the next fit on. Source: Dynamic and
    Deep Nearest Neighbors (J. Loverich, 2023), whose code takes the groups' bounds from the number of features, not of
    centers, and so leaves most centers out; here every center is in a group. `layers_`: the layers, once fitted.
    Each layer trusts the one before more than new samples bear out; StackedClassifier mends that.
    """

    def __init__(
        self,
        num_layers: int = 3,
        splits: int = 1,
        kernel: str | Kernel = "cosine",
        exponent: float = -4.0,
        epsilon: float = 1e-6,
        influence_cone_factor: float = 2.0,
        scales: int = 4,
        predictor: str = "interpolation",
        batch_size: int = 64,
        target_accuracy: float = 0.9,
        max_count: int = 3,
        max_neighbors: int = 100_000,
        shuffle: bool = True,
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        super().__init__()
        self.num_layers, self.splits = num_layers, splits
        self.kernel, self.exponent, self.epsilon = kernel, exponent, epsilon
        self.influence_cone_factor, self.scales, self.predictor = influence_cone_factor, scales, predictor
        self.batch_size, self.target_accuracy, self.max_count = batch_size, target_accuracy, max_count
        self.max_neighbors, self.shuffle, self.seed = max_neighbors, shuffle, seed
        self.device, self.progress = device, progress

    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind: one pass a layer, and the data passed forward anew.

        Raises ValueError as DynamicClassifier.fit, and for more `splits` than a layer has centers to group.
        """
        settings = self.get_params(deep=False)
        num_layers, splits = (require_count(name, settings.pop(name)) for name in ("num_layers", "splits"))
        x, layers = features_of(self, X, reset=True), [DynamicClassifier(**settings) for _ in range(num_layers)]
        for layer in layers[:-1]:
            x = passed(layer.fit(x, y), x, splits)
        layers[-1].fit(x, y)
        return self._made_of(layers, splits)

    @classmethod
    def _from_settings(cls, told: dict, layers: list[DynamicClassifier]):
        own, given = cls._get_param_names(), layers[0].get_params(deep=False)
        return cls(len(layers), told["splits"], **{name: value for name, value in given.items() if name in own})
