"""Limits: a bucket that refills, and a share that a failure gives back."""

import pytest

from fedfree.errors import LimitError
from server.doors import limits
from server.doors.limits import Open, Quota, RateLimit, address_of


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def taken(limit: RateLimit, organisation: str, tries: int) -> int:
    """How many of so many requests at once are let through."""
    passed = 0
    for _ in range(tries):
        try:
            limit.take(organisation)
        except LimitError:
            continue
        passed += 1
    return passed


def test_a_minutes_requests_may_come_at_once_and_no_more() -> None:
    assert taken(RateLimit(30, clock=Clock()), "org-1", 100) == 30


def test_over_a_long_time_no_more_than_the_rate_is_let_through() -> None:
    clock = Clock()
    limit = RateLimit(30, clock=clock)
    passed = 0
    for _ in range(3600):
        passed += taken(limit, "org-1", 5)
        clock.seconds += 1
    assert 30 * 60 <= passed <= 30 * 60 + 30


def test_silence_earns_no_more_than_one_minutes_requests() -> None:
    clock = Clock()
    limit = RateLimit(30, clock=clock)
    clock.seconds = 1e6
    assert taken(limit, "org-1", 100) == 30


def test_one_organisation_does_not_spend_anothers_requests() -> None:
    limit = RateLimit(30, clock=Clock())
    taken(limit, "org-1", 100)
    assert taken(limit, "org-2", 100) == 30


def test_the_time_to_wait_is_the_time_until_the_next_request_passes() -> None:
    clock = Clock()
    limit = RateLimit(6, clock=clock)
    taken(limit, "org-1", 6)
    with pytest.raises(LimitError, match="try again in 10 s"):
        limit.take("org-1")
    clock.seconds = 10
    limit.take("org-1")


def test_a_share_counts_what_was_handed_over_before_and_what_is_under_way() -> None:
    quota = Quota(3, {"org-1": 1})
    with quota.one_more("org-1"), quota.one_more("org-1"):
        with (
            pytest.raises(LimitError, match="org-1 has handed over 3 contributions"),
            quota.one_more("org-1"),
        ):
            pass
        with quota.one_more("org-2"):
            pass
    with pytest.raises(LimitError), quota.one_more("org-1"):
        pass


def test_what_fails_is_not_counted() -> None:
    quota = Quota(1, {})
    for _ in range(3):
        with pytest.raises(KeyError), quota.one_more("org-1"):
            raise KeyError
    with quota.one_more("org-1"):
        pass


def test_who_was_silent_for_a_minute_is_forgotten_and_then_who_was_silent_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_BUCKETS", 100)
    clock = Clock()
    limit = RateLimit(2, clock=clock)
    for number in range(10_000):
        taken(limit, f"address-{number}", 2)
        assert len(limit._buckets) <= 100
    assert taken(limit, "address-9999", 1) == 0
    clock.seconds = 60
    taken(limit, "another", 1)
    assert list(limit._buckets) == ["another"]


def test_a_clock_that_goes_backwards_takes_nothing_from_anybody() -> None:
    clock = Clock()
    clock.seconds = 1000
    limit = RateLimit(30, clock=clock)
    taken(limit, "org-1", 10)
    clock.seconds = 0
    assert taken(limit, "org-1", 100) == 20


def test_so_many_calls_are_open_of_one_and_of_all() -> None:
    calls = Open(2, 3)
    with calls.one_more("a"), calls.one_more("a"), calls.one_more("b"):
        for caller, words in (("a", "2 calls of yours are open"), ("b", "too many calls are open")):
            with pytest.raises(LimitError, match=words), calls.one_more(caller):
                pass
    with calls.one_more("b"):
        pass


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:51234", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2::9%5D:51234", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:192.0.2.7]:51234", "192.0.2.7"),
        ("ipv6:[fe80::1%25eth0]:51234", "fe80::/64"),
        ("unix:", "unix"),
    ],
)
def test_an_address_is_who_calls_and_of_ipv6_the_network(peer: str, address: str) -> None:
    assert address_of(peer) == address
