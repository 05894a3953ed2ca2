"""The coordinator's page over HTTP: what it shows, to whom, and what nobody gets out of it."""

import http.client
import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from fedfree.errors import ConfigError
from fedfree.host.channel import Address
from server.doors.page import CONNECTIONS, served
from server.doors.tokens import Tokens
from server.events import Event
from server.storage.run_directory import RunDirectory, event_to_line
from tests.programs import RunProgram

HandOver = Callable[..., str]
ANYWHERE = Address("127.0.0.1", 0)
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e"
PATHS = ("/", "/status.json", "/picture.png")


def ask(
    at: Address, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    """Status, content and headers of an answer."""
    connection = http.client.HTTPConnection(at.host, at.port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace"), answer.headers
    finally:
        connection.close()


def record(run: RunDirectory, *events: Event) -> None:
    with run.events.open("a") as file:
        file.writelines(map(event_to_line, events))


def iteration(number: int, of: int = 9) -> Event:
    return Event("learn", "progress", {"iteration": number, "of": of, "replay_loss": 0.5}, 60.0 * number)


@contextmanager
def connected(at: Address) -> Iterator[socket.socket]:
    with socket.create_connection((at.host, at.port), timeout=30) as connection:
        yield connection


def test_words_of_others_are_text_and_nothing_else(begun: RunDirectory, hand_over: HandOver) -> None:
    accepted, refused = (hand_over(begun, seed=seed, organisation=HOSTILE) for seed in (0, 1))
    begun.store().accept(accepted)
    begun.store().quarantine(refused, f"{HOSTILE} <img src=x onerror=alert(2)>")
    begun.tokens.write_text(json.dumps({HOSTILE: {"salt": "s", "digest": "d"}}))
    doubt = {"contribution": accepted, "counts": 0.25, "evidence": f"one vote with {HOSTILE}"}
    record(begun, Event("learn", "doubted", doubt))
    record(begun, Event("collect", "failed", {"node": HOSTILE, "reason": HOSTILE}))
    begun.write_error(ConfigError(HOSTILE))
    with served(begun.path, ANYWHERE) as at:
        _, page, _ = ask(at)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 7
    assert page.count("<script>") == 1 and "<img src=x" not in page
    assert all(each.isprintable() or each == "\n" for each in page)


def test_the_page_tells_who_is_expected_what_came_and_what_became_of_it(
    begun: RunDirectory, hand_over: HandOver
) -> None:
    tokens = Tokens(begun.tokens)
    tokens.add("clinic")
    tokens.add("lab", expires_days=30)
    accepted, refused = (hand_over(begun, seed=seed, organisation="clinic") for seed in (0, 1))
    begun.store().accept(accepted)
    begun.store().quarantine(refused, "a copy of another")
    record(begun, *map(iteration, (1, 2, 3)))
    record(begun, Event("learn", "left out", {"contribution": accepted, "reason": "it is not finite"}))
    with served(begun.path, ANYWHERE) as at:
        status, page, headers = ask(at)
        _, told, _ = ask(at, "/status.json")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for words in ("Iteration 3 of 9, about 6 minutes left", "a copy of another", "it is not finite"):
        assert words in page
    facts = json.loads(told)
    assert facts["counts"] == {"received": 0, "accepted": 1, "quarantined": 1}
    handed_over = {each["name"]: each["handed_over"] for each in facts["expected"]}
    assert handed_over == {"clinic": "1 accepted, 1 quarantined", "lab": "nothing yet"}
    assert facts["said"] == "Learning, about 6 minutes left."


def test_nothing_of_a_token_is_told_and_nothing_is_written(begun: RunDirectory, hand_over: HandOver) -> None:
    token = Tokens(begun.tokens).add("clinic")
    hand_over(begun, organisation="clinic")
    begun.signing_key.sign("meta-learner", b"")

    def lies_there() -> dict[Path, int]:
        return {each: each.stat().st_mtime_ns for each in begun.path.rglob("*")}

    before = lies_there()
    kept = [token, *re.findall('"([^"]{20,})"', begun.tokens.read_text())]
    with served(begun.path, ANYWHERE) as at:
        told = "".join(ask(at, path)[1] for path in PATHS)
    assert len(kept) == 3 and not [each for each in kept if each in told]
    assert str(begun.path) not in told and "signing" not in told
    assert lies_there() == before


@pytest.mark.parametrize(
    "path",
    [
        "/server.toml",
        "/tokens.json",
        "/../tokens.json",
        "/%2e%2e/tokens.json",
        "/picture.png/",
        "/index.html",
    ],
)
def test_no_path_leads_to_a_file(begun: RunDirectory, path: str) -> None:
    with served(begun.path, ANYWHERE) as at:
        status, content, _ = ask(at, path)
    assert (status, content) == (404, "there is /, /status.json, /picture.png\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_only_reading_is_allowed(begun: RunDirectory, method: str) -> None:
    with served(begun.path, ANYWHERE) as at:
        status, _, headers = ask(at, method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_head_has_the_headers_of_the_page_without_it(begun: RunDirectory) -> None:
    with served(begun.path, ANYWHERE) as at:
        status, content, headers = ask(at, method="HEAD")
    assert (status, content) == (200, "") and int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9999", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8765", 200),
        ("evil.example", 403),
        ("evil.example:8765", 403),
        ("localhost.evil.example", 403),
        ("localhost:8765@evil.example", 403),
        ("", 403),
    ],
)
def test_whoever_calls_it_by_another_name_is_turned_away(begun: RunDirectory, host: str, status: int) -> None:
    with served(begun.path, ANYWHERE) as at:
        assert {ask(at, path, Host=host)[0] for path in PATHS[:2]} == {status}


@pytest.mark.parametrize("request_", [b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
def test_a_request_without_a_host_or_form_gets_no_page(begun: RunDirectory, request_: bytes) -> None:
    with served(begun.path, ANYWHERE) as at, connected(at) as connection:
        connection.sendall(request_)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"<html" not in answer


def test_a_browser_is_told_to_load_nothing_from_elsewhere(begun: RunDirectory) -> None:
    with served(begun.path, ANYWHERE) as at:
        _, page, headers = ask(at)
        refused = ask(at, "/nowhere")[2]
    for each in (headers, refused):
        policy = dict(part.split(" ", 1) for part in each["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert "unsafe" not in str(policy)
        assert each["X-Content-Type-Options"] == "nosniff" and each["Cache-Control"] == "no-store"
        assert each["Referrer-Policy"] == "no-referrer" and "Python" not in each["Server"]
    assert not re.findall(r"https?://", page) and not re.findall(r"\sstyle=|\son[a-z]+=", page)


def test_the_page_follows_the_run_without_a_script_too(begun: RunDirectory) -> None:
    with served(begun.path, ANYWHERE) as at:
        _, page, _ = ask(at)
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.7:0", "example.org:80"])
def test_an_address_that_others_reach_is_refused(begun: RunDirectory, listen: str) -> None:
    with (
        pytest.raises(ConfigError, match="can be reached by others"),
        served(begun.path, Address.parse(listen)),
    ):
        pass


def test_a_port_that_is_taken_is_refused(begun: RunDirectory) -> None:
    with (
        served(begun.path, ANYWHERE) as at,
        pytest.raises(ConfigError, match=f"cannot serve the page on {at}"),
        served(begun.path, at),
    ):
        pass


def test_events_that_are_damaged_or_half_written_are_passed_over(begun: RunDirectory) -> None:
    begun.events.write_bytes(b'\xff\xfe\0{]\n[]\n{"time": "x"}\nnull\n{"stage"')
    with begun.events.open("a") as file:
        file.write('\n{"time": "2026-11-22T12:00:00+00:00", "stage": 1, "kind": [], "values": [1]}\n')
    record(begun, iteration(1), iteration(2))
    with begun.events.open("a") as file:
        file.write(event_to_line(iteration(3))[:50])
    with served(begun.path, ANYWHERE) as at:
        status, page, _ = ask(at)
    assert status == 200 and "Iteration 2 of 9" in page and "Cannot be read" not in page


def test_where_one_file_is_damaged_the_rest_is_shown_with_one_line_more(begun: RunDirectory) -> None:
    record(begun, iteration(1), iteration(2))
    begun.tokens.write_text("{")
    begun.recovered.write_bytes(b"no tensors")
    with served(begun.path, ANYWHERE) as at:
        status, page, _ = ask(at)
        assert ask(at, "/picture.png")[0] == 404
    assert status == 200 and "Iteration 2 of 9" in page
    assert page.count("Cannot be read just now.") == 1 and "is not valid JSON" in page


def test_a_run_that_cannot_be_read_says_so_until_it_can(begun: RunDirectory) -> None:
    aside = begun.path.with_name("aside")
    with served(begun.path, ANYWHERE) as at:
        begun.manifest.write_bytes(b"\xff")
        status, page, _ = ask(at)
        assert status == 503 and "is damaged: learn again" in page
        begun.manifest.unlink()
        assert ask(at)[0] == 200
        shutil.move(begun.path, aside)
        status, told, _ = ask(at, "/status.json")
        assert status == 503 and json.loads(told)["said"] == "The run cannot be read just now."
        assert not begun.path.exists()
        shutil.move(aside, begun.path)
        assert {ask(at, path)[0] for path in PATHS[:2]} == {200}


def test_many_may_ask_at_once(begun: RunDirectory, hand_over: HandOver) -> None:
    hand_over(begun)
    with served(begun.path, ANYWHERE) as at, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda turn: ask(at, PATHS[turn % 2])[0], range(40)))
    assert answers == [200] * 40


def test_more_than_a_few_connections_are_turned_away(begun: RunDirectory) -> None:
    with served(begun.path, ANYWHERE) as at, ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connected(at))
        with connected(at) as one_more:
            assert one_more.recv(100).startswith(b"HTTP/1.0 503 ")


def test_a_connection_that_says_nothing_is_ended_and_makes_room(begun: RunDirectory) -> None:
    with served(begun.path, ANYWHERE, seconds=0.01) as at:
        for _ in range(2):
            with ExitStack() as stack:
                silent = [stack.enter_context(connected(at)) for _ in range(CONNECTIONS)]
                assert [each.recv(10) for each in silent] == [b""] * CONNECTIONS


def test_a_picture_is_there_once_images_were_recovered(begun: RunDirectory) -> None:
    with served(begun.path, ANYWHERE) as at:
        assert ask(at, "/picture.png")[0] == 404 and "picture.png" not in ask(at)[1]
        begun.write_recovered({"0" * 64: torch.zeros(3, 1, 16, 16, dtype=torch.uint8)})
        status, _, headers = ask(at, "/picture.png")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert '<img src="/picture.png?' in ask(at)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--serve"), "is not a prepared run"),
        (("federation", "--serve", "--listen", "0.0.0.0:0"), "can be reached by others"),
        (("federation", "--serve", "--listen", "here"), "is not an address"),
        (("federation", "--listen", "localhost:0"), "give --serve as well"),
    ],
)
def test_a_command_that_cannot_serve_ends_with_one_line(
    begun: RunDirectory,
    arguments: tuple[str, ...],
    said: str,
    run_program: RunProgram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(begun.path.parent)
    status, out, err = run_program("server", "status", *arguments)
    assert status == 2 and said in err and out == ""
