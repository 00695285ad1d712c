"""The language model: counts against plain ones, bulk against one by one, probabilities, coding, bad input, files."""

import re
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from nnlib.coder import CorruptError
from nnlib.contexts import VIEWS, Characters, Words, numbered
from nnlib.data import text as shipped
from nnlib.evidence import evidence
from nnlib.models import ModelError
from nnlib.reading import decode, encode
from nnlib.recall import EXPERTS, Recall
from nnlib.text import ContextModel

LETTERS = st.text("ab' \n", min_size=1, max_size=60)
STRANGE = st.text("aÉ漢😀. \n", min_size=1, max_size=40)
ALICE = shipped("alice").replace("\r\n", "\n")


@pytest.fixture(scope="module")
def model():
    return ContextModel().fit(ALICE[5000:25000])


def key(view: int, slot: int, past: str) -> tuple | None:
    """What the neighbors in a slot share with a past, said plainly; None where the past is too short."""
    if VIEWS[view] is Characters:
        length = Characters.LENGTHS[slot]
        return None if length > len(past) else (past[len(past) - length :],)
    if VIEWS[view] is Words:
        plain = re.sub(r"[\n\r\t]", " ", "".join(c.lower() if len(c.lower()) == 1 else c for c in past))
        starts = [m.start() for m in re.finditer(r"(?<![\w'’])[\w'’]", plain)]
        within = bool(re.search(r"[\w'’]$", plain))
        number = slot + 1 if within else slot
        start = len(plain) - 2 if number == 0 else starts[-number] - 1 if number <= len(starts) else -1
        start = max(start, len(plain) - 32)
        return None if start < 0 else (plain[start:],)
    if len(past) < slot + 1:
        return None
    line = past.split("\n")[-1]
    return min(len(line), 127), past[len(past) - slot - 1 :]


def alike(view: int, slot: int, past: str, other: str) -> bool:
    """Whether what stands before another place shares with a past what the slot asks for."""
    asked = key(view, slot, past)
    return asked is not None and key(view, slot, other) == asked


def plain_counts(text: str, past: str, alphabet: list[str]) -> np.ndarray:
    """How often each character followed, for each expert, by looking at every place of the text."""
    counts = np.zeros((len(EXPERTS), len(alphabet)))
    for number, (view, slot, deeper) in enumerate(EXPERTS):
        seen = set()
        for place, character in enumerate(text):
            if alike(view, slot, past, text[:place]):
                below = (key(view, slot + 1, text[:place]) or place, character) if deeper else place
                if below not in seen:
                    seen.add(below)
                    counts[number, alphabet.index(character)] += 1
    return counts


def recall(text: str) -> Recall:
    return Recall(text, numbered(text), [(view, view.sorted()) for view in (kind(text) for kind in VIEWS)])


@settings(max_examples=60, deadline=None)
@given(st.one_of(LETTERS, STRANGE), st.text("ab'É漢 \nz", max_size=30), st.integers(0, 60))
def test_counts_are_those_of_a_plain_search(text, other, place):
    known = recall(text)
    for past in (other, text[:place], text):
        np.testing.assert_array_equal(known.counts(past), plain_counts(text, past, known.alphabet))


@settings(max_examples=40, deadline=None)
@given(st.one_of(LETTERS, STRANGE), st.one_of(LETTERS, STRANGE), st.booleans())
def test_evidence_in_bulk_is_what_reading_on_counts(text, more, adapt):
    whole, reader = text + more, recall(text)
    views = [kind(whole) for kind in VIEWS]
    asked = range(len(text), len(whole))
    told = [e for view in views for e in evidence(view, view.sorted(), numbered(whole), asked, adapt)]
    for step, character in enumerate(more):
        counts = reader.counts(whole[: len(text) + step])
        came = counts[:, reader.code[character]] if character in reader.code else np.zeros(len(EXPERTS))
        expected = np.stack([counts.sum(1), (counts > 0).sum(1), came], 1)
        np.testing.assert_array_equal(np.stack(told)[:, step], expected)
        if adapt:
            reader.add(character, counts)


@settings(max_examples=40, deadline=None)
@given(LETTERS, st.integers(0, 59), st.integers(1, 20))
def test_evidence_leaves_out_what_it_asks_for(text, start, length):
    asked = range(min(start, len(text) - 1), min(start + length, len(text)))
    told = []
    for view in (kind(text) for kind in VIEWS):
        told += evidence(view, view.sorted(), numbered(text), asked)
    for step, place in enumerate(asked):
        for number, (view, slot, deeper) in enumerate(EXPERTS):
            if deeper:
                continue
            followed = defaultdict(int)
            for other in set(range(len(text))) - set(asked):
                followed[text[other]] += alike(view, slot, text[:place], text[:other])
            found = [sum(followed.values()), sum(n > 0 for n in followed.values()), followed[text[place]]]
            assert told[number][step].tolist() == found, EXPERTS[number]


@settings(max_examples=60, deadline=None)
@given(context=st.text(max_size=200))
def test_probabilities_sum_to_one_for_any_context(model, context):
    p = model.predict_proba(context)
    assert p.shape == (len(model.alphabet_) + 1,)
    assert abs(p.sum() - 1) < 1e-6 and (p > 0).all()


@pytest.mark.parametrize("adapt", [False, True])
def test_bits_are_what_a_reader_expected(model, adapt):
    tail = ALICE[25000:25300] + "é漢é漢"
    reader, costs = model.reader(adapt), []
    for character in tail:
        p, code = reader.probabilities(), reader.code(character)
        spelled = np.log2(1_112_064 - len(reader.alphabet)) if code == len(reader.alphabet) else 0.0
        costs.append(spelled - np.log2(p[code]))
        reader.read(character)
    np.testing.assert_allclose(model.bits(tail, adapt), costs, rtol=1e-4, atol=1e-4)
    assert np.isfinite(costs).all()
    assert (costs[-1] < costs[-3]) == adapt  # it costs less once it was read
    assert "é" not in model.alphabet_


def test_the_gate_learns_and_reading_helps(model):
    tail, plain = ALICE[25000:29000], ContextModel().fit(ALICE[5000:25000])
    plain.gate_ = type(plain.gate_)(len(EXPERTS))
    static, adapting = model.bits_per_character(tail), model.bits_per_character(tail, adapt=True)
    assert static < plain.bits_per_character(tail) - 0.1
    assert adapting < static < 2.9
    assert 0.4 < model.accuracy(tail[:500]) < 0.7


def test_weights_are_the_prediction(model):
    context = "said Alice, who was "
    weights, p = model.weights(context), model.predict_proba(context)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    text, alphabet = model.text_, list(model.alphabet_)
    votes = np.bincount([alphabet.index(c) for c in text], weights[:-1], len(alphabet)) + weights[-1] / len(p)
    np.testing.assert_allclose(votes, p[:-1], atol=1e-9)
    told = model.explain(context, top=5)
    assert [passage.weight for passage in told] == sorted((passage.weight for passage in told), reverse=True)
    for weight, place, before, character, after in told:
        assert text[place - len(before) : place + 1 + len(after)] == before + character + after
        assert weight == pytest.approx(weights[place])
    assert sum(model.trust(context).values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("more", [400, 3000])
def test_reading_on_is_like_having_read_it_all(more):
    head, tail = ALICE[:8000], ALICE[8000 : 8000 + more]
    pieces, whole = ContextModel().fit(head), ContextModel().fit(head)
    for start in range(0, more, 100):
        pieces.partial_fit(tail[start : start + 100])
    whole._know(head + tail)
    assert pieces.text_ == head + tail
    for context in ("the ", "and Alice", "", "zzz"):
        order = np.argsort(list(pieces.alphabet_))  # new characters come last, in the order of their coming
        np.testing.assert_allclose(pieces.predict_proba(context)[order], whole.predict_proba(context)[:-1], atol=1e-12)
    assert ContextModel().partial_fit(head).text_ == head


@pytest.mark.parametrize("adapt", [False, True])
def test_text_is_coded_at_its_bits_and_comes_back(model, adapt):
    tail = ALICE[30000:31500] + "😀 naïve"
    data = encode(model.reader(adapt), tail)
    assert 8 * len(data) <= 1.001 * model.bits(tail, adapt).sum() + 80
    assert decode(model.reader(adapt), data) == tail
    assert decode(model.reader(adapt), encode(model.reader(adapt), "")) == ""


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f" + bytes(range(40))])
def test_forged_codes_are_refused(model, data):
    with pytest.raises(CorruptError, match="data"):
        decode(model.reader(), data)


def test_writing(model):
    assert model.generate("Alice", 0) == ""
    assert model.generate("Alice", 50, 1.0, seed=3) == model.generate("Alice", 50, 1.0, seed=3)
    assert model.generate("Alice", 50, 1.0, seed=3) != model.generate("Alice", 50, 1.0, seed=4)
    assert model.generate("Alice", 30, 0, seed=3) == model.generate("Alice", 30, 0, seed=4)
    assert len(model.generate("", 20, 1e-3, memory=0)) == len(model.generate("é" * 400, 20, 100)) == 20


@pytest.mark.parametrize(
    "given",
    [
        {"length": -1},
        {"length": 1.5},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"memory": -1},
        {"prompt": 3},
    ],
)
def test_settings_without_sense_are_named(model, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        model.generate(**given)


@pytest.mark.parametrize("text", ["", b"bytes", None, "half \ud83d a pair"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ValueError, match="text"):
        ContextModel().fit(text)


@pytest.mark.parametrize(
    "text", ["a", "ab", "a" * 1000, ALICE[:49], ALICE[:50], ALICE[:60], "漢字かな" * 30, ALICE[9000:9100] * 30]
)
def test_little_and_dull_texts(text):
    model = ContextModel().fit(text)
    assert np.isfinite(model.bits("ab漢 " + text[:20], adapt=True)).all()
    assert len(model.generate(text[:3], 10)) == 10
    assert model.predict_proba(text).sum() == pytest.approx(1)


def test_it_must_be_fitted_first():
    for use in (lambda m: m.predict_proba("a"), lambda m: m.bits("a"), lambda m: m.generate(), lambda m: m.alphabet_):
        with pytest.raises(NotFittedError, match="fit"):
            use(ContextModel())


def test_files(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    again = ContextModel.load(path)
    np.testing.assert_array_equal(again.predict_proba("Alice "), model.predict_proba("Alice "))
    for name, data in {"cut": path.read_bytes()[:1000], "foreign": b"no model", "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=name):
            ContextModel.load(tmp_path / name)
    with pytest.raises(ModelError, match="missing"):
        ContextModel.load(tmp_path / "missing")
    with pytest.raises(OSError, match="cut"):
        model.save(tmp_path / "cut" / "model")
