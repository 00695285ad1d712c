"""Every public entry gives the same answer whatever the caller has set, and moves no generator."""

import copy
import cProfile
import importlib
import inspect
import pickle
import random
import sys
import tempfile
import timeit
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from nnlib import datasets, features, image_codec, language, nca, neighbors, training
from nnlib._common.runtime import torch_defaults
from nnlib.attention import (
    DotProduct,
    InverseDistance,
    Kernel,
    Labels,
    UniformKNN,
    attend,
    class_log_probabilities,
    make_kernel,
    nearest,
)

TEXT = "to be, or not to be: that is the question whether to be or not to be nobler in mind. "
SETTINGS = {  # that keep fits short, and their steps too small for several threads
    "progress": False,
    "epochs": 3,
    "width": 16,
    "dim": 4,
    "n_prototypes": 6,
}
KERNELS = [
    *(make_kernel(name) for name in ("euclidean", "cosine", "euclidian_pyramid", "cosine_softmax")),
    make_kernel("influence_cone"),
    DotProduct(),
    UniformKNN(3, InverseDistance()),
]
METHODS = "predict_proba predict_log_proba predict transform kneighbors".split()
ENTRIES = {}
HOOKS = ("get_extra_state", "set_extra_state")  # that PyTorch calls
CALLED = set()  # the code of all that references call
PACKAGES = "attention datasets features image_codec language nca neighbors training".split()


def entry(function):
    """Note a function of the data that calls public entries and returns what they give."""
    ENTRIES[function.__name__] = function
    return function


def draw_data() -> SimpleNamespace:
    """Small data of every kind, drawn by a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator)
    labels = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    pixels = torch.randint(256, (24, 24, 3), generator=generator, dtype=torch.uint8)
    return SimpleNamespace(
        x=x,
        index=torch.arange(40),
        labels=labels,
        targets=x[:, 0] * x[:, 1],
        values=torch.rand(40, 3, generator=generator),
        images=(255 * torch.rand(12, 9, 9, generator=generator)).to(torch.uint8),
        picture=pixels // 2 + 3 * torch.arange(24, dtype=torch.uint8)[:, None, None],
    )


def with_gradient(function, *tensors, backward=nullcontext):
    """What a function of tensors gives, and the gradients of its sum."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [part.clone().requires_grad_() for part in tensors]
        result = function(*inputs)
        with backward():
            return [result, *torch.autograd.grad(result.sum(), inputs)]


@entry
def attention(data):
    centers, values = data.x[:25], data.values[:25]
    labels = data.labels[:25]
    kernel = KERNELS[0]
    return [
        [attend(data.x, centers, values, each) for each in KERNELS],
        [nearest(data.x, centers, 3, each) for each in KERNELS[:-1]],
        attend(data.x, centers, Labels(labels, 2), kernel, backend="blocks"),
        attend(data.x[:, :2].contiguous(), centers[:, :2], values, KERNELS[4], backend="search"),
        class_log_probabilities(data.x, centers, labels, 2, kernel),
    ]


@entry
def attention_gradients(data):
    inputs = (data.x, data.x[:9], data.values[:9])
    return [with_gradient(partial(attend, kernel=each), *inputs) for each in KERNELS[:-1]]


@entry
def neighborhood_components(data):
    bank = nca.MemoryBank(data.labels, 5)
    bank.update(data.index, data.x)
    rows = data.index[:8]
    losses = with_gradient(lambda x: nca.nca_loss(x, data.labels[:8], bank, None, rows), data.x[:8])
    loss = nca.nca_loss(data.x[:8], data.labels[:8], bank, None, rows)
    votes = nca.knn_predict(data.x, bank, k=5, top=2)
    accuracy = nca.knn_accuracy(data.x, data.labels, data.x, data.labels, k=5)
    bank.clear(rows)
    cleared = bank.embeddings()
    bank.fill(data.x)
    return [*losses, loss, votes, accuracy, cleared, bank.embeddings(), bank.local_rows(rows)]


@entry
def embeddings(data):
    network = torch.nn.Identity()
    batches = [(data.x[:20], data.labels[:20]), (data.x[20:], data.labels[20:])]
    return [nca.embed(network, batches), nca.knn_evaluate(network, batches, batches, k=3)]


def estimator(name: str):
    """An entry: a fit and all that the estimator then does, its gradients last."""

    def run(data):
        kind = getattr(neighbors, name)
        known = inspect.signature(kind).parameters
        settings = {key: value for key, value in SETTINGS.items() if key in known}
        rules = [{"rule": rule} for rule in ("smoothed", "published")] if "rule" in known else [{}]
        return [results_of(kind(**settings | rule), name, data) for rule in rules]

    return run


def results_of(model, name: str, data) -> list:
    """What fits of an estimator, whole and in parts, give for the data."""
    y = data.targets if "Regressor" in name else data.labels
    takes_classes = "classes" in inspect.signature(model.fit).parameters
    known = {"classes": [0, 1]} if takes_classes else {}
    results = fitted_results(model.fit(data.x, y, **known), data, y)
    if hasattr(model, "partial_fit"):
        again = clone(model).partial_fit(data.x[:25], y[:25], **known)
        results += fitted_results(again.partial_fit(data.x[25:], y[25:]), data, y)
    return results


def forward_gradient(model, x) -> list:
    """The gradient of a model's forward to x, or why it has none."""
    try:  # PyTorch's own layers go backward in the caller's state
        return with_gradient(model, x, backward=torch_defaults)
    except RuntimeError as error:
        assert "has gradients to values alone" in str(error)
        return [str(error)]


def fitted_results(model, data, y) -> list:
    """What a fitted estimator gives for the data."""
    results = [getattr(model, name)(data.x) for name in METHODS if hasattr(model, name)]
    results += [model.kneighbors(n_neighbors=1)] if hasattr(model, "kneighbors") else []
    results += [model.score(data.x, y)] if hasattr(model, "score") else []
    results += [model.layer_scores(data.x, y)] if hasattr(model, "layer_scores") else []
    results += [model.num_neighbors] if hasattr(model, "num_neighbors") else []
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model"))
        loaded = type(model).load(Path(folder, "model"))
    name = "predict" if hasattr(model, "predict") else "transform"
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    results += [getattr(other, name)(data.x) for other in (loaded, copied)]
    if isinstance(model, torch.nn.Module):
        results += [model(data.x), *forward_gradient(model, data.x)]
    return results


ENTRIES |= {name: estimator(name) for name in neighbors.__all__}


@entry
def context_model(data):
    model = language.ContextModel().fit(TEXT * 2)
    model.partial_fit("to be nobler")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model"))
        loaded = language.ContextModel.load(Path(folder, "model"))
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    code = language.encode(model.reader(adapt=True), "to be")
    return [
        *(each.predict_proba("to b") for each in (model, loaded, copied)),
        *(model.bits("or not to bee", adapt) for adapt in (False, True)),
        model.bits_per_character("or not"),
        model.accuracy("or not", adapt=True),
        model.generate("to ", 12),
        [*model.expert_weights("to b").values()],
        [tuple(passage) for passage in model.explain("to b", 3)],
        model.weights("to b"),
        code,
        language.decode(model.reader(adapt=True), code),
        model.text_ + model.alphabet_,
    ]


@entry
def window_model(data):
    model = language.WindowModel(num_features=3, progress=False).fit(TEXT)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model"))
        loaded = language.WindowModel.load(Path(folder, "model"))
    return [
        loaded.predict_proba("to b"),
        model.predict_proba("to b"),
        model.generate("to ", 5),
        model.accuracy(TEXT),
        model.layer_accuracies(TEXT),
        model.bits_per_character(TEXT),
    ]


@entry
def pictures_as_centers(data):
    grey = image_codec.encode(data.picture[..., 0], quality=20, steps=3)
    transparent = torch.cat([data.picture, data.picture[..., :1]], 2)
    colour = image_codec.encode(transparent, bits_per_pixel=4, steps=3)
    coded = image_codec.unpack(grey)
    opponent = image_codec.opponent_to_rgb(data.picture.float())
    decoded = [image_codec.decode(grey, zoom=2), image_codec.decode(colour)]
    return [grey, colour, *decoded, image_codec.info(colour), coded.codes, opponent]


@entry
def centers_of_a_picture(data):
    fitter = image_codec.CenterFitter(data.picture.float() / 255)
    fitter.add(12)
    fitter.move(3, quantizing=True)
    fitter.add(2)
    return [fitter.render(), fitter.density(), *fitter.parts, *fitter.quantized()]


@entry
def image_features(data):
    model = features.PatchFeatures(count=8, size=3, mirror=True)
    copies = features.shifted_copies(data.images, data.labels[:12], copies=2)
    with tempfile.TemporaryDirectory() as folder:
        model.fit(data.images).save(Path(folder, "model"))
        loaded = features.PatchFeatures.load(Path(folder, "model"))
    return [
        model.transform(data.images),
        loaded.transform(data.images),
        features.deskew(data.images),
        features.blur(data.images, 0.8),
        features.mirrored_copies(data.images),
        *features.shifted_copies(data.images, data.labels[:12]),
        *copies,
        *features.pixel_samples(data.picture),
    ]


@entry
def image_sets(data):
    return [
        datasets.load_photo("chelsea").sum(),
        len(datasets.load_text("alice")),
        *(part[:3] for part in datasets.load("mnist")),
    ]


@entry
def trained_encoders(data):
    with tempfile.TemporaryDirectory() as folder:
        for number in range(16):
            path = Path(folder, "data", "ab"[number % 2], f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.picture.roll(number, 0).clone().numpy()).save(path)
        settings = dict(size=8, batch_size=4, epochs=1, validation=0.3, low_dim=8, progress=False)
        config = training.TrainingConfig(f"{folder}/data", f"{folder}/run", "small", **settings)
        result = training.train(config)
        drawn = training.open_pictures(config.data, 8).gallery.draw(data.index[1:3], seed=0)
    with torch_defaults():  # PyTorch's own layers compute in the caller's state
        embedded = result.trained.network(data.picture.movedim(2, 0)[None])
    losses = [row["loss"] for row in result.history]
    return [embedded, drawn, losses, result.trained.features, result.test["knn_top1"]]


@contextmanager
def setting(change, value, usual):
    """A process with one setting of PyTorch's changed."""
    change(value)
    try:
        yield
    finally:
        change(usual)


def set_newer_switches(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value
    torch.backends.mkldnn.conv.fp32_precision = value


@contextmanager
def together(*names):
    """Several states at once."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(STATES[name]())
        yield


STATES = {
    "float64 by default": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16 by default": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "meta by default": lambda: setting(torch.set_default_device, "meta", None),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "medium": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "bf16": lambda: setting(set_newer_switches, "bf16", "ieee"),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "one thread": lambda: setting(torch.set_num_threads, 1, torch.get_num_threads()),
    "four threads": lambda: setting(torch.set_num_threads, 4, torch.get_num_threads()),
}
QUICK = [  # each state once; one alone is told from its neighbors by the slow test
    ("no_grad", "float64 by default", "medium", "four threads"),
    ("inference_mode", "bfloat16 by default", "autocast", "one thread"),
    ("meta by default", "deterministic", "bf16"),
]


SLOWER = 3  # than in seconds: of a machine that other tests share
TOLERANCE = {  # where it can't be the same to the bit; bfloat16 is off by 1e-3 and more
    "attention": 1e-6,  # products are cut otherwise for four threads, and round otherwise
    "neighborhood_components": 1e-6,
    "trained_encoders": 1e-3,  # networks' sums over pictures are cut by the number of threads
}


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def generators() -> list:
    """The states of the global generators."""
    return [torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()]


def plain(value):
    """A result as numbers, texts, bytes and arrays, with their types."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        number = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        return str(value.dtype), str(value.device), number.numpy().tolist()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def same(one, other, tolerance: float | None) -> bool:
    """Whether two results are equal, or their numbers near each other."""
    if isinstance(one, list | tuple) and tolerance and type(one) is type(other):
        parts = zip(one, other, strict=True)
        return len(one) == len(other) and all(same(*part, tolerance) for part in parts)
    if isinstance(one, float) and tolerance:
        return abs(one - other) <= tolerance * max(1, abs(one))
    return one == other


@cache
def reference(name: str):
    """What an entry gives where nothing is set; CALLED is added to."""
    profile = cProfile.Profile(builtins=False)
    try:
        return profile.runcall(lambda: plain(ENTRIES[name](draw_data())))
    finally:
        CALLED.update(part.code for part in profile.getstats())


def public_functions() -> dict:
    """The code of each public function and method on a face, by its name."""
    codes = {}
    for package in PACKAGES:
        face = importlib.import_module(f"nnlib.{package}")
        for name in face.__all__:
            value = getattr(face, name)
            own = {name: value} if inspect.isfunction(value) else {}
            if inspect.isclass(value) and not issubclass(value, Kernel):  # attend calls theirs
                public = [part for part in dir(value) if part not in HOOKS and part[0] != "_"]
                own = {f"{name}.{part}": getattr(value, part) for part in public}
            for path, function in own.items():
                code = getattr(inspect.unwrap(function), "__code__", None)
                if code is not None and "/nnlib/" in code.co_filename:
                    codes[f"{package}.{path}"] = code
    return codes


def test_every_public_function_is_in_the_table():
    for name in ENTRIES:
        reference(name)
    missing = [name for name, code in public_functions().items() if code not in CALLED]
    assert missing == [], "let an entry call them"


def check_answer(name: str, state, data) -> None:
    right = reference(name)
    seed_all(len(name))
    before = plain(generators())
    with state:
        found = ENTRIES[name](data)
    assert plain(generators()) == before, "a global generator was moved"
    pairs = enumerate(zip(plain(found), right, strict=True))
    wrong = [number for number, (one, other) in pairs if not same(one, other, TOLERANCE.get(name))]
    assert wrong == [], f"results {wrong} differ"


@pytest.mark.parametrize("states", QUICK, ids=", ".join)
@pytest.mark.parametrize("name", ENTRIES)
def test_the_answer_is_the_same_in_any_state(name, states):
    with torch.inference_mode():  # whose tensors are taken too
        data = draw_data()
    check_answer(name, together(*states), data)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ENTRIES)
def test_the_answer_is_the_same_in_each_state(name, state):
    check_answer(name, STATES[state](), draw_data())


FITS = {
    "NCATransformer": lambda x, y: (
        neighbors.NCATransformer(width=8, dim=2, epochs=3, dropout=0.2, progress=False)
        .fit(x, y)
        .transform(x)
    ),
    "PrototypeClassifier": lambda x, y: (
        neighbors.PrototypeClassifier(epochs=3, progress=False).fit(x, y).predict_proba(x)
    ),
    "ContextModel": lambda x, y: language.ContextModel().fit(TEXT * 2).bits("or not to be"),
    "Embedding": lambda x, y: training.Embedding("small", 4, 1, 8).backbone[-1].weight,
}


@pytest.mark.parametrize("name", FITS)
def test_fits_in_threads_do_not_meet(name):
    data = draw_data()
    expected = plain(FITS[name](data.x, data.labels))
    with together("float64 by default", "medium"), ThreadPoolExecutor(4) as pool:
        fits = [pool.submit(FITS[name], data.x, data.labels) for _ in range(6)]
        results = [plain(fit.result()) for fit in fits]
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    assert results == [expected] * 6


def test_no_module_holds_tensors():
    """They would be made in the state that the first import finds."""
    held = [
        f"{name}.{key}"
        for name, module in list(sys.modules.items())
        if name.startswith("nnlib")
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert held == []


def test_defaults_cost_next_to_nothing():
    def hold():
        with torch_defaults():
            pass

    assert min(timeit.repeat(hold, number=100, repeat=50)) / 100 <= 1e-5 * SLOWER
