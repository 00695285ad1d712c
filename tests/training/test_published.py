"""Published checkpoints: files are read as torch wrote them, and nothing in one is ever run."""

import importlib
import operator
import os
import pickle
import sys
import warnings
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnlib.errors import ModelError
from nnlib.training.snca_checkpoint import load_snca

MODULE = """
import torch


class LinearAverage(torch.nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.nLem = len(memory)
        self.register_buffer("params", torch.tensor([0.05, 0.5]))
        self.register_buffer("memory", memory)
"""
FORMS = pytest.mark.parametrize("zipped", [False, True], ids=["pickles", "zip"])
NAMES = ("lib", "lib.LinearAverage")


def tensors(width=8, seed=0):
    """A state dict as of a parallel encoder with a last layer [128, width], with its metadata."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv1.weight": (4, 3, 3, 3),
        "bn1.running_var": (4,),
        "fc.weight": (128, width),
        "fc.bias": (128,),
    }
    state = OrderedDict(
        (f"module.{name}", torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    )
    state["module.bn1.num_batches_tracked"] = torch.tensor(7)
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


@pytest.fixture
def linear_average(tmp_path, monkeypatch):
    """The class of the module that a published file pickles, which can't be imported any more."""
    folder = tmp_path / "code" / "lib"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "LinearAverage.py").write_text(MODULE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder.parent)
        made = importlib.import_module("lib.LinearAverage").LinearAverage
    made.modules = {name: sys.modules.pop(name) for name in NAMES}
    return made


@pytest.fixture
def write(tmp_path, linear_average, monkeypatch):
    """Write a published file, with changes to its dict, while its class can be imported."""

    def written(zipped, protocol=2, without=(), **changes):
        parameter = torch.nn.Parameter(torch.ones(5))
        parameter.grad = torch.ones(5)
        optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9, nesterov=True)
        optimizer.step()
        found = dict(
            epoch=130, arch="resnet18", state_dict=tensors(), lemniscate=linear_average(bank())
        )
        found |= dict(best_prec1=81.5, optimizer=optimizer.state_dict()) | changes
        found = {key: value for key, value in found.items() if key not in without}
        path = tmp_path / "snca_resnet18.pth.tar"
        with monkeypatch.context() as patch:
            for name, module in linear_average.modules.items():
                patch.setitem(sys.modules, name, module)
            torch.save(found, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        return path

    return written


def bank():
    return torch.nn.functional.normalize(
        torch.randn(20, 128, generator=torch.Generator().manual_seed(1))
    )


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def unprefixed(state):
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


# ---- what is read


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@FORMS
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_published_file(write, zipped, protocol):
    path = write(zipped, protocol)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lib.LinearAverage")
    with pytest.raises(pickle.UnpicklingError):  # why it is not read with torch
        torch.load(path, weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_snca(str(path))
    assert found.keys() == {"arch", "weights", "bank"} and found["arch"] == "resnet18"
    assert same(found["weights"], unprefixed(tensors()))
    assert torch.equal(found["bank"], bank()) and type(found["weights"]) is dict
    assert not sys.modules.keys() & {*NAMES}


def test_the_older_form_holds_the_source_of_its_class(write):
    assert MODULE.strip().encode()[-40:] in write(False).read_bytes()
    assert b"ctorch\nFloatStorage" in write(False).read_bytes()


def test_tensors_of_a_gpu(write):
    path = write(False)
    moved = path.read_bytes().replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    moved = moved.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert b"cuda:0" in moved and b"ctorch.cuda" in moved
    expected = load_snca(path)
    path.write_bytes(moved)
    found = load_snca(path)
    assert same(found["weights"], expected["weights"]) and torch.equal(
        found["bank"], expected["bank"]
    )


class Pairs(dict):
    """Is pickled as Python 2 pickled an OrderedDict."""

    def __reduce__(self):
        return OrderedDict, ([list(pair) for pair in self.items()],)


@FORMS
def test_what_python_2_wrote(write, zipped):
    found = load_snca(write(zipped, state_dict=Pairs(tensors())))
    assert same(found["weights"], unprefixed(tensors()))


@FORMS
def test_views_of_one_storage(write, zipped):
    whole = torch.arange(60.0)
    views = {
        "a": whole[5:17].view(3, 4),
        "module.b": whole[20:].view(4, 10).T,
        "c": whole[7],
        "d": whole[60:],
    }
    found = load_snca(write(zipped, state_dict=views))
    assert same(found["weights"], unprefixed(views))


def test_optional_parts(write):
    without = ("lemniscate", "optimizer", "best_prec1", "epoch")
    assert load_snca(write(True, without=without))["bank"] is None
    assert load_snca(write(True, lemniscate=None))["bank"] is None


@FORMS
def test_weights_fit_a_resnet(write, zipped):
    from torchvision.models import resnet18

    encoder = torch.nn.DataParallel(resnet18(num_classes=128))
    found = load_snca(write(zipped, state_dict=encoder.state_dict()))
    encoder.module.load_state_dict(found["weights"], strict=True)
    assert same(found["weights"], encoder.module.state_dict()) and len(found["weights"]) == 122


# ---- what is refused


class Call:
    """Is pickled as the call of a function, which may be what another call returns."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]

    def __call__(self):
        pass


class Touch:
    """Is pickled as a path, and as a state that calls for it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return list, (), None, iter([Call(Path.touch, self.mark)]), None


def bombs(mark):
    shell = f'{sys.executable} -c \'open("{mark}", "w")\''
    imported = Call(importlib.import_module, "os")
    return {
        "system": Call(os.system, shell),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": Call(Call(getattr, imported, "system"), shell),
        "operator": Call(operator.methodcaller("touch"), mark),
        "attrgetter": Call(Call(Call(operator.attrgetter, "system"), imported), shell),
        "torch": Call(torch.save, 1, str(mark)),
        "in a list": Touch(mark),
    }


@FORMS
@pytest.mark.parametrize(
    "place", ["file", "dict", "state_dict", "weight", "lemniscate", "bank", "optimizer", "arch"]
)
@pytest.mark.parametrize("bomb", bombs(Path()))
def test_nothing_is_run(write, linear_average, tmp_path, zipped, place, bomb):
    mark = tmp_path / "mark"
    call = bombs(mark)[bomb]
    state = tensors() | {"module.fc.bias": call}
    module = linear_average(torch.ones(3, 128))
    module._buffers["memory"] = call
    changes = {
        "weight": {"state_dict": state},
        "bank": {"lemniscate": module},
        "optimizer": {"optimizer": [call]},
    }
    path = write(zipped, **changes.get(place, {place: call}))
    if place == "file":
        torch.save(call, path, _use_new_zipfile_serialization=zipped)
    with (
        suppress(ModelError)
        if place in ("dict", "optimizer")
        else pytest.raises(ModelError, match="snca_resnet18")
    ):
        assert load_snca(path)["weights"].keys() == unprefixed(tensors()).keys()
    assert not mark.exists()


@pytest.mark.parametrize("bomb", bombs(Path()))
def test_it_would_have_run(tmp_path, bomb):
    mark = tmp_path / "mark"
    raw = pickle.dumps(bombs(mark)[bomb], protocol=2)
    (tmp_path / "bare.pth.tar").write_bytes(raw)
    with pytest.raises(ModelError, match="bare.pth.tar"):
        load_snca(tmp_path / "bare.pth.tar")
    assert not mark.exists()
    with suppress(AttributeError):
        pickle.loads(raw)
    assert mark.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive(tmp_path):
    path = tmp_path / "script.pth.tar"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.raises(ModelError, match="script.pth.tar.*a TorchScript archive"):
        load_snca(path)


WRONG = {
    "no state_dict": (dict(without=("state_dict",)), "has no state_dict"),
    "empty state_dict": (dict(state_dict={}), "has no state_dict"),
    "list of weights": (dict(state_dict=[torch.ones(2)]), "has no state_dict"),
    "text for a weight": (dict(state_dict={"module.a": "text"}), "'module.a' is no tensor"),
    "numbered weight": (dict(state_dict={1: torch.ones(2)}), "can't be read"),
    "twice": (
        dict(state_dict={"module.a": torch.ones(2), "a": torch.ones(2)}),
        "both with and without 'module.'",
    ),
    "arch": (
        dict(arch="alexnet"),
        "its arch is 'alexnet', not one of resnet18, resnet34, resnet50",
    ),
    "arch's type": (dict(arch=18), "its arch is 18, not one of"),
    "no arch": (dict(without=("arch",)), "its arch is None, not one of"),
    "lemniscate": (dict(lemniscate=[1, 2]), "lemniscate's memory is no tensor"),
    "module without bank": (
        dict(lemniscate=torch.nn.Linear(2, 3)),
        "lemniscate's memory is no tensor",
    ),
}


@FORMS
@pytest.mark.parametrize("case", WRONG)
def test_wrong_parts(write, zipped, case):
    changes, message = WRONG[case]
    with pytest.raises(
        ModelError, match=f"path=.*snca_resnet18.pth.tar.*{message}.*: give a whole file"
    ) as caught:
        load_snca(write(zipped, **changes))
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


@FORMS
@pytest.mark.parametrize(
    "shape, dtype", [((128,), None), ((9, 127), None), ((1, 9, 128), None), ((9, 128), torch.long)]
)
def test_wrong_banks(write, linear_average, zipped, shape, dtype):
    with pytest.raises(
        ModelError, match=r"its bank is of torch.\w+ \[.*\], not of floats \[N, 128\]"
    ):
        load_snca(write(zipped, lemniscate=linear_average(torch.ones(shape, dtype=dtype))))


@pytest.mark.parametrize("value", [None, 3, "text", [1], torch.ones(2)])
def test_no_dict(tmp_path, value):
    torch.save(value, tmp_path / "x.pth.tar")
    with pytest.raises(ModelError, match="x.pth.tar.*it holds no dict"):
        load_snca(tmp_path / "x.pth.tar")


def test_no_file(tmp_path):
    for path in (tmp_path / "absent.pth.tar", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(
            ModelError, match="path=.*can't be read as a published checkpoint .*Error"
        ):
            load_snca(path)


@FORMS
def test_truncated_anywhere(write, zipped):
    path = write(zipped)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="snca_resnet18"):
            load_snca(path)


@FORMS
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_broken_anywhere(write, zipped, data):
    path = write(zipped)
    broken = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4)):
        broken[place % len(broken)] = data.draw(
            st.integers(0, 255)
        )  # storages are named by address: lengths vary
    path.write_bytes(broken)
    with suppress(ModelError):
        found = load_snca(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in found["weights"].values())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"begun"]), tail=st.binary(max_size=300)
)
def test_random_bytes(tmp_path, head, tail):
    path = tmp_path / "random.pth.tar"
    path.write_bytes((begun() if head == b"begun" else head) + tail)
    with pytest.raises(ModelError, match="random.pth.tar"):
        load_snca(path)


# ---- what would change what others share


def begun():
    """The pickles with which the older form begins."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(value, protocol=2) for value in head)


def test_what_is_no_class_can_not_be_changed(tmp_path, write):
    """A pickle may set the state of whatever it names: of shared classes and functions too."""
    for shared in (
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
    ):
        path = tmp_path / "state.pth.tar"
        state = b"N}X\x0c\x00\x00\x00__defaults__)sX\x0a\x00\x00\x00removesuffixNs\x86b."
        path.write_bytes(begun() + b"\x80\x02" + shared + state + pickle.dumps([], protocol=2))
        with pytest.raises(ModelError, match="state.pth.tar"):
            load_snca(path)
    assert same(load_snca(write(True))["weights"], unprefixed(tensors()))
