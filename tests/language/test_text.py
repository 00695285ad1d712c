"""The language model: probabilities, bits, weights, appended text, coding, bad input, files."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.exceptions import NotFittedError

from nnlib._common import serialization
from nnlib.datasets import load_text as shipped
from nnlib.errors import CorruptError, ModelError
from nnlib.language import coding
from nnlib.language.coding import decode, encode
from nnlib.language.context_model import ContextModel
from nnlib.language.gating import GatingNetwork
from nnlib.language.suffix_index import EXPERTS, SuffixIndex

ALICE = shipped("alice").replace("\r\n", "\n")


@pytest.fixture(scope="module")
def model():
    return ContextModel().fit(ALICE[5000:25000])


def knowing(text: str, gate: GatingNetwork) -> ContextModel:
    """A model that knows a text, and trusts as another one learned to."""
    model = ContextModel()
    model.gating_ = gate
    model._index = SuffixIndex(text)
    return model


def by_character(model: ContextModel, context: str) -> dict[str, float]:
    return dict(
        zip([*model.alphabet_, "others"], model.predict_proba(context).tolist(), strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(context=st.text(max_size=200))
@example("")
@example("Alice " * 100)
@example("😀" * 400)
def test_probabilities_sum_to_one_for_any_context(model, context):
    p = model.predict_proba(context)
    assert p.shape == (len(model.alphabet_) + 1,)
    assert abs(p.sum() - 1) < 1e-6 and (p > 0).all()


@pytest.mark.parametrize("adapt", [False, True])
def test_bits_are_what_a_reader_expected(model, adapt):
    tail = ALICE[25000:25250] + "é漢é漢"
    reader, costs = model.reader(adapt), []
    for character in tail:
        p, code = reader.probabilities(), reader.code(character)
        spelled = np.log2(1_112_064 - len(reader.alphabet)) if code == len(reader.alphabet) else 0.0
        costs.append(spelled - np.log2(p[code]))
        reader.read(character)
    np.testing.assert_allclose(model.bits(tail, adapt), costs, rtol=1e-5, atol=1e-5)
    assert np.isfinite(costs).all()
    assert (costs[-1] < costs[-3]) == adapt  # it costs less once it was read
    assert "é" not in model.alphabet_ and model.text_ == ALICE[5000:25000]
    for character in "ae\n":
        p = by_character(model, model.text_)[character]
        assert model.bits(character, adapt)[0] == pytest.approx(-np.log2(p), rel=1e-5)


def test_the_gate_learns_and_reading_helps(model):
    tail, untrained = ALICE[25000:28000], knowing(model.text_, GatingNetwork(len(EXPERTS)))
    static, adapting = model.bits_per_character(tail), model.bits_per_character(tail, adapt=True)
    assert static < 2.65 and adapting < static - 0.05  # 2.56 and 2.41 when this was written
    assert static < untrained.bits_per_character(tail) - 0.4
    assert 0.4 < model.accuracy(tail[:300]) < 0.7


@pytest.mark.parametrize("context", ["said Alice, who was ", "", "e", "漢字\n", ALICE[20000:20200]])
def test_weights_are_the_prediction(model, context):
    weights, p = model.weights(context), by_character(model, context)
    text = model.text_
    assert weights.shape == (len(text) + 1,) and (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    for character in model.alphabet_:
        votes = weights[:-1][[c == character for c in text]].sum() + weights[-1] / len(p)
        assert votes == pytest.approx(p[character], abs=1e-9)
    assert p["others"] == pytest.approx(weights[-1] / len(p), abs=1e-9)
    by_expert = list(model.expert_weights(context).values())
    assert len(by_expert) == len(EXPERTS) + 1 and sum(by_expert) == pytest.approx(1, abs=1e-6)
    assert by_expert[-1] == pytest.approx(weights[-1], rel=1e-5)


def test_passages_stand_where_they_say(model):
    passages = model.explain("said Alice, who was ", top=7, around=25)
    weights, text = model.weights("said Alice, who was "), model.text_
    assert [passage.weight for passage in passages] == sorted(weights[:-1], reverse=True)[:7]
    for weight, place, before, character, after in passages:
        assert text[place - 25 : place + 26] == before + character + after and len(before) == 25
        assert weight == weights[place] and before.endswith(" ")
    assert knowing("ab", model.gating_).explain("a", top=9)[0].character == "b"
    with pytest.raises(ValueError, match="top"):
        model.explain("a", top=0)


@pytest.mark.parametrize(("head", "more"), [(3000, 400), (3000, 1250), (1, 40), (30, 200)])
def test_reading_on_is_like_having_read_it_all(model, head, more):
    text = ALICE[8000 : 8000 + head + more - 3] + "漢é漢"
    pieces, whole = knowing(text[:head], model.gating_), knowing(text, model.gating_)
    for start in range(head, len(text), 100):
        pieces.partial_fit(text[start : start + 100])
    assert pieces.text_ == text and (len(pieces._index.text) > head) == (
        more > 1000
    )  # whether it was sorted anew
    for context in (
        "",
        "t",
        "the ",
        "and Alice",
        "zzz",
        "é漢",
        text[-9:],
        text[-50:],
        text,
        text[:2],
        text[:20],
    ):
        assert by_character(pieces, context) == pytest.approx(
            by_character(whole, context), abs=1e-12
        )
    np.testing.assert_allclose(pieces.bits("the 漢"), whole.bits("the 漢"), atol=1e-6)
    np.testing.assert_allclose(pieces.weights("the "), whole.weights("the "), atol=1e-12)
    assert by_character(pieces, "é漢") == pytest.approx(by_character(whole, "é漢"), abs=1e-12)


def test_reading_on_begins_with_fitting():
    text = ALICE[8000:8500]
    first, fitted = ContextModel().partial_fit(text), ContextModel().fit(text)
    assert by_character(first, "the ") == by_character(fitted, "the ")
    assert first.partial_fit("").text_ == text
    with pytest.raises(ValueError, match="text"):
        first.partial_fit(b"more")


@pytest.mark.parametrize("adapt", [False, True])
def test_text_is_coded_at_its_bits_and_comes_back(model, adapt):
    tail = ALICE[30000:30300] + "😀 naïve"
    data = encode(model.reader(adapt), tail)
    assert 8 * len(data) <= 1.001 * model.bits(tail, adapt).sum() + 80
    assert decode(model.reader(adapt), data) == tail
    assert decode(model.reader(adapt), encode(model.reader(adapt), "")) == ""


@settings(max_examples=15, deadline=None)
@given(text=st.one_of(st.text("aé😀 \n", max_size=30), st.text(max_size=12)), adapt=st.booleans())
def test_any_text_is_coded_and_comes_back(model, text, adapt):
    assert decode(model.reader(adapt), encode(model.reader(adapt), text)) == text


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(0, 25),
    code=st.lists(st.binary(min_size=4, max_size=4), max_size=6),
    adapt=st.booleans(),
)
@example(length=2**31 - 1, code=[bytes(range(40))], adapt=False)
@example(length=2**32 - 1, code=[], adapt=True)
@example(length=300, code=[bytes(8)], adapt=True)
@example(length=1, code=[b"\xff" * 8], adapt=False)
def test_forged_codes_are_refused_soon(model, length, code, adapt):
    data = b"".join([length.to_bytes(4, "little"), *code])
    try:
        text = decode(model.reader(adapt), data)
    except CorruptError as error:
        assert "data" in str(error)
    else:  # by chance what encode() writes
        assert encode(model.reader(adapt), text) == data


def test_cut_and_changed_codes_are_refused(model):
    data = encode(model.reader(), ALICE[40000:40060])
    changed = [
        data[:8] + bytes([data[8] ^ 1]) + data[9:],
        data + bytes(4),
        data[4:],
        b"\0" + data[1:],
    ]
    for forged in [data[:size] for size in range(len(data))] + changed:
        with pytest.raises(CorruptError, match="data"):
            decode(model.reader(), forged)
    with pytest.raises(ValueError, match="surrogate"):
        encode(model.reader(), "half \ud83d a pair")


def test_the_code_of_a_dull_text_is_filled_up(model, monkeypatch):
    monkeypatch.setattr(coding, "CHARACTERS_PER_BYTE", 16)
    dull = knowing("a" * 1000, model.gating_)
    data = encode(dull.reader(), "a" * 300)
    assert len(data) == 4 + 16  # a byte for each 16 characters, in words of 4
    assert decode(dull.reader(), data) == "a" * 300
    with pytest.raises(CorruptError, match="data"):
        decode(dull.reader(), data[:-4])


def test_writing(model):
    assert model.generate("Alice", 0) == ""
    assert model.generate("Alice", 50, 1.0, seed=3) == model.generate("Alice", 50, 1.0, seed=3)
    assert model.generate("Alice", 50, 1.0, seed=3) != model.generate("Alice", 50, 1.0, seed=4)
    assert model.generate("Alice", 30, 0, seed=3) == model.generate("Alice", 30, 0, seed=4)
    assert (
        len(model.generate("", 20, 1e-3, memory=0)) == len(model.generate("é" * 400, 20, 100)) == 20
    )
    assert model.generate("Alice", 9, memory=10**9) == model.generate("Alice", 9)
    assert model.generate("Alice", 9, memory=0) == model.generate("zzzzz", 9, memory=0)
    assert model.generate("of the Al", 3, 0, memory=2) == model.generate("Al", 3, 0, memory=2)
    assert set(model.generate("é", 50, 1e6)) <= set(model.alphabet_)


@pytest.mark.parametrize(
    "options",
    [
        {"length": -1},
        {"length": 1.5},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"memory": -1},
        {"prompt": 3},
    ],
)
def test_settings_without_sense_are_named(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate(**options)


@pytest.mark.parametrize("text", ["", b"bytes", None, "half \ud83d a pair"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ValueError, match="text"):
        ContextModel().fit(text)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "ab",
        "a" * 1000,
        ALICE[:49],
        ALICE[:50],
        ALICE[:60],
        "漢字かな" * 30,
        ALICE[9000:9100] * 30,
    ],
)
def test_little_and_dull_texts(text):
    model = ContextModel().fit(text)
    assert np.isfinite(model.bits("ab漢 " + text[:20], adapt=True)).all()
    assert len(model.generate(text[:3], 10)) == 10
    assert model.predict_proba(text).sum() == pytest.approx(1)


def test_it_must_be_fitted_first():
    for use in (
        lambda m: m.predict_proba("a"),
        lambda m: m.bits("a"),
        lambda m: m.generate(),
        lambda m: m.alphabet_,
    ):
        with pytest.raises(NotFittedError, match="fit"):
            use(ContextModel())


def test_files(model, tmp_path):
    path = tmp_path / "model.safetensors"
    read = knowing(model.text_, model.gating_).partial_fit("漢字")
    read.save(path)
    again, whole = ContextModel.load(path), knowing(model.text_ + "漢字", model.gating_)
    assert again.text_ == whole.text_ and again.seed == 0
    for context in ("", "Alice ", "漢字"):
        np.testing.assert_array_equal(again.predict_proba(context), whole.predict_proba(context))
    parts = load_file(path)
    header = {"format": "nnlib.2", "settings": '{"seed": 0}'}
    save_file(parts | {"mean": parts["mean"][1:]}, tmp_path / "shape", header)
    save_file(parts | {"text": parts["mean"].clone()}, tmp_path / "numbers", header)
    save_file(parts | {"text": parts["text"][:-1]}, tmp_path / "half", header)
    save_file(parts | {"text": parts["text"][:0]}, tmp_path / "nothing", header)
    save_file({"text": parts["text"]}, tmp_path / "untrained", header)
    save_file(parts, tmp_path / "kind", header | {"format": "nnlib.1"})
    save_file(parts, tmp_path / "bare")
    save_file(parts, tmp_path / "settings", header | {"settings": "[]"})
    (tmp_path / "cut").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "foreign").write_bytes(b"no model")
    (tmp_path / "empty").write_bytes(b"")
    for file in {*tmp_path.iterdir(), tmp_path / "missing"} - {path}:
        with pytest.raises(ModelError, match=file.name):
            ContextModel.load(file)


def test_a_file_is_written_whole_or_not_at_all(model, tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_bytes(b"before")

    def fails(parts, file, header):
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(serialization, "save_file", fails)
    with pytest.raises(OSError, match="full"):
        model.save(path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"before"
    with pytest.raises(OSError, match="model"):
        model.save(path / "inside")
    with pytest.raises(NotFittedError):
        ContextModel().save(tmp_path / "unfitted")
    assert list(tmp_path.iterdir()) == [path]
