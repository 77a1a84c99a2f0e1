"""Keys: what is refused, what is matched, and that none is ever told; and the rate of each."""

import hmac
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.errors import UserError
from deescal.serve.keys import KeyRing, RateLimit, read_keys

ALICE, BOB = "alice-has-this-key", "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("DEESCAL_API_KEYS", raising=False)


def test_none_is_false():
    assert not read_keys()
    assert read_keys().match(f"Bearer {ALICE}") is None


@pytest.mark.parametrize("separator", [",", "\n", " ,\n "])
def test_keys_of_the_environment(monkeypatch, separator):
    monkeypatch.setenv("DEESCAL_API_KEYS", f"alice:{ALICE}{separator}{BOB}")
    keys = read_keys()
    assert keys
    assert keys.match(f"Bearer {ALICE}") == "alice"
    assert keys.match(f"bearer  {BOB} ") == "key-2"


def test_keys_of_a_file_join_those_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DEESCAL_API_KEYS", ALICE)
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n\nbob : {BOB}\r\n")
    keys = read_keys(str(file))
    assert keys.match(f"Bearer {BOB}") == "bob"
    assert keys.match(f"Bearer {ALICE}") == "key-1"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", ALICE, f"Basic {ALICE}", f"Bearer {ALICE}x", f"Bearer {ALICE[:-1]}", "é\ud800"],
)
def test_no_other_header_matches(monkeypatch, header):
    monkeypatch.setenv("DEESCAL_API_KEYS", f"alice:{ALICE}")
    assert read_keys().match(header) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("alice:too-short", "entry 1: a key of 9 characters"),
        (f"alice:{ALICE},bob:{ALICE}", "entry 2: the same key"),
        (f"alice:{ALICE},alice:{BOB}", "entry 2: a second key named 'alice'"),
        (f"a b:{ALICE}", "entry 1: a key's name"),
        (f"alice:{ALICE} and more", "visible ASCII"),
        ("alice:schlüssel-für-alle", "visible ASCII"),
    ],
)
def test_bad_keys_are_refused_and_not_told(monkeypatch, text, why):
    monkeypatch.setenv("DEESCAL_API_KEYS", text)
    with pytest.raises(UserError, match=why) as refused:
        read_keys()
    assert not any(key in str(refused.value) for key in ("too-short", ALICE, BOB, "schl"))


def test_a_file_without_keys_opens_nothing(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(UserError, match="no key in it"):
        read_keys(str(file))
    with pytest.raises(UserError, match="No such file"):
        read_keys(str(tmp_path / "missing"))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_keys(str(file))


def test_a_ring_holds_and_shows_no_key(monkeypatch):
    monkeypatch.setenv("DEESCAL_API_KEYS", f"alice:{ALICE}")
    keys = read_keys()
    assert ALICE not in repr(keys)
    assert ALICE.encode() not in pickle.dumps(keys)


def test_every_key_is_compared_whichever_fits(monkeypatch):
    monkeypatch.setenv("DEESCAL_API_KEYS", f"alice:{ALICE},bob:{BOB},carol:{BOB}-of-carol")
    keys = read_keys()
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
    for key in (ALICE, BOB, "none of them"):
        compared.clear()
        keys.match(f"Bearer {key}")
        assert compared == list(keys.digests.values())


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rate_is_per_key_and_comes_back_with_time():
    clock = Clock()
    rate = RateLimit(per_minute=60, burst=2, clock=clock)
    assert [rate.take("alice") for _ in range(3)] == [0, 0, 1.0]
    assert rate.take("bob") == 0
    clock.now += 0.75
    assert rate.take("alice") == pytest.approx(0.25)
    clock.now += 0.25
    assert rate.take("alice") == 0
    clock.now += 3600  # a pause is worth no more than a burst
    assert [rate.take("alice") for _ in range(3)] == [0, 0, 1.0]


@settings(max_examples=30)
@given(st.lists(st.floats(0, 5), max_size=50), st.integers(1, 5), st.integers(1, 600))
def test_never_more_than_burst_and_rate(pauses, burst, per_minute):
    clock = Clock()
    rate = RateLimit(per_minute, burst, clock)
    granted = 0
    for pause in pauses:
        clock.now += pause
        granted += rate.take("k") == 0
    assert granted <= burst + sum(pauses) * per_minute / 60 + 1e-6


def test_empty_ring_is_the_default():
    assert KeyRing() == KeyRing({})
