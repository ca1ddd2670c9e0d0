"""Every exchange recorded with the seed's server, sent to the embedded one.

The server's clock is set to the time of each row and its key is the one of the recording, so that signatures, bearer
credentials and offer ids are valid as recorded. Only service ids and UUIDs are others: they are mapped as they appear.
Compared are status, content type, CORS headers and the whole body, times with a tolerance.
`DIFFERENCES` names every case that is answered otherwise on purpose. The limits of size and rate, which the seed's server
has not, are above everything that was recorded: `test_app` shows them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rondevud.rendezvous.app import Settings, start
from rondevud.rendezvous.rules import Limits
from rondevud.rendezvous.storage import SqliteStorage

DATA = Path(__file__).parents[2] / "data"
RECORDED_KEY = bytes(range(32))
TOLERANCE = 100
"""Milliseconds between the time of a row and the clock of the recorded server, and candidates' stamps."""

DRAWN_AT_RANDOM = {"peerId", "secret", "version", "description"}
"""Members that are compared by type only. (``peerId`` in answers about offers is checked by the offers' ids.)"""

SAME_UUID = "the UUID of a service stays the same when it is published again"
KEEPS_OLD = "a refused publication leaves the previous service alone"
OWN_WORDS = "the recorded text names an internal of JavaScript"
NO_STRANGERS = "a service is deleted only by the peer that published it"

DIFFERENCES: dict[str, tuple[str, int, Any]] = {
    # case: (reason, status, body; Ellipsis = not compared)
    "get-old-uuid-after-upsert": (SAME_UUID, 200, ...),
    "get-after-failed-republish": (KEEPS_OLD, 200, ...),
    "query-after-failed-republish": (KEEPS_OLD, 200, ...),
    "publish-message-number": (OWN_WORDS, 500, {"error": "Internal server error", "details": "message is not a text"}),
    "publish-not-json": (
        OWN_WORDS,
        500,
        {"error": "Internal server error", "details": "The request body is not JSON"},
    ),
    "create-offers-null-entry": (OWN_WORDS, 500, {"error": "Invalid SDP in offer"}),
    "delete-service-by-stranger": (
        NO_STRANGERS,
        404,
        {"error": "Service not found or not owned by this username"},
    ),
    "delete-service-again": ("the stranger did not delete it", 200, {"success": True}),
    "read-since-last-of-batch": ("candidates are stamped in strictly rising order", 200, ...),
}


class Replay:
    """One recording against one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._ids: dict[str, str] = {}
        self._stamps: dict[int, int] = {}
        self.problems: list[str] = []
        self.differing: set[str] = set()
        self.now = 0

    async def row(self, row: dict[str, Any]) -> None:
        self.now = row["t"]
        request, recorded = row["request"], row["response"]
        data = request.get("body_text")
        if request.get("body") is not None:
            data = json.dumps(self._translate(expand(request["body"])))
        async with self._session.request(
            request["method"],
            self._url + self._translate(request["path"]),
            headers=request["headers"],
            data=None if data is None else data.encode(),
            skip_auto_headers={"Content-Type"},
        ) as response:
            text = await response.text()
            headers = response.headers
        where = f"{row['seq']} {row['case']}"
        found = len(self.problems)
        self._compare_headers(where, recorded["headers"], headers)
        if response.status != recorded["status"]:
            self.problems.append(f"{where}: status {response.status} instead of {recorded['status']}: {text}")
        elif "body_text" in recorded:
            if text != recorded["body_text"]:
                self.problems.append(f"{where}: {text!r} instead of {recorded['body_text']!r}")
        else:
            self._compare(where, recorded["body"], json.loads(text))
        if row["case"] in DIFFERENCES:
            self._judge_difference(where, row["case"], found, response.status, text)

    def _judge_difference(self, where: str, case: str, found: int, status: int, text: str) -> None:
        """A case on the list must differ, and in the way that the list says."""
        if len(self.problems) == found:
            self.problems.append(f"{where}: does not differ any more: {DIFFERENCES[case][0]}")
        else:
            del self.problems[found:]
        _, expected_status, expected_body = DIFFERENCES[case]
        if status != expected_status or expected_body not in (..., json.loads(text)):
            self.problems.append(f"{where}: differs in another way than listed: {status} {text}")
        self.differing.add(case)

    def _compare_headers(self, where: str, recorded: dict[str, str], ours: Any) -> None:
        for name, value in recorded.items():
            if name == "content-type" and recorded.get("access-control-max-age"):
                continue  # the recorded preflight has a type without a body
            if ours.get(name) != value:
                self.problems.append(f"{where}: header {name} is {ours.get(name)!r} instead of {value!r}")
        extra = {name.lower() for name in ours if name.lower().startswith("access-control-")} - set(recorded)
        if extra:
            self.problems.append(f"{where}: headers that were not recorded: {extra}")

    def _translate(self, value: Any) -> Any:
        """Recorded ids and stamps in a request become the ones that this server gave."""
        if isinstance(value, dict):
            return {name: self._translate(one) for name, one in value.items()}
        if isinstance(value, list):
            return [self._translate(one) for one in value]
        if isinstance(value, str) and len(value) < 300:
            for recorded, ours in self._ids.items():
                value = value.replace(recorded, ours)
            return re.sub(r"(?<=since=)\d{13}$", lambda match: str(self._stamp(int(match[0]))), value)
        return value

    def _stamp(self, recorded: int) -> int:
        """From the nearest stamp seen: some lie in the left out part of a list, one is a stamp less 1."""
        nearest = min(self._stamps, key=lambda seen: abs(seen - recorded))
        return self._stamps[nearest] + recorded - nearest

    def _compare(self, where: str, recorded: Any, ours: Any, name: str = "") -> None:
        if type(recorded) is not type(ours):
            self.problems.append(f"{where}: {name} is {ours!r} instead of {recorded!r}")
        elif isinstance(recorded, dict):
            if recorded.keys() != ours.keys():
                self.problems.append(f"{where}: {name} has members {sorted(ours)} instead of {sorted(recorded)}")
                return
            for key in recorded:
                self._compare(where, recorded[key], ours[key], key)
        elif isinstance(recorded, list):
            self._compare_lists(where, recorded, ours, name)
        else:
            self._compare_values(where, recorded, ours, name)

    def _compare_lists(self, where: str, recorded: list[Any], ours: list[Any], name: str) -> None:
        more = 0
        if recorded and isinstance(recorded[-1], dict) and "$more_items" in recorded[-1]:
            more = recorded[-1]["$more_items"]
            recorded = recorded[:-1]
        if len(ours) != len(recorded) + more:
            self.problems.append(f"{where}: {name} has {len(ours)} items instead of {len(recorded) + more}")
        for left, right in zip(recorded, ours, strict=False):
            self._compare(where, left, right, name)

    def _compare_values(self, where: str, recorded: Any, ours: Any, name: str) -> None:
        if name in {"serviceId", "uuid"}:
            same = (
                re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", ours) is not None
            )
            same = same and self._ids.setdefault(recorded, ours) == ours
        elif name in DRAWN_AT_RANDOM:
            same = bool(ours)
        elif isinstance(recorded, int) and recorded > 10**12:
            same = abs(recorded - ours) <= TOLERANCE
            self._stamps[recorded] = ours
        else:
            same = recorded == ours
        if not same:
            self.problems.append(f"{where}: {name} is {ours!r} instead of {recorded!r}")


def expand(value: Any) -> Any:
    """Undo the shortening of long texts and lists."""
    if isinstance(value, dict):
        if "$repeat" in value:
            return value["$repeat"] * value["$length"]
        return {name: expand(one) for name, one in value.items()}
    if isinstance(value, list) and value and isinstance(value[-1], dict) and "$more_items" in value[-1]:
        kept = [expand(one) for one in value[:-1]]
        return kept + [similar(kept[-1], number) for number in range(value[-1]["$more_items"])]
    if isinstance(value, list):
        return [expand(one) for one in value]
    return value


def similar(value: dict[str, Any], number: int) -> dict[str, Any]:
    """Another element of the same form: its first member gets a suffix."""
    first = next(iter(value))
    return {**value, first: f"{value[first]}{number}"}


@pytest.mark.parametrize(
    ("recording", "limits", "cases"),
    [
        ("rest-v0.2.jsonl", Limits(), set(DIFFERENCES)),
        ("rest-v0.2-expiry.jsonl", Limits(min_ttl=1000), set()),
    ],
)
async def test_recorded_exchanges_are_answered_as_by_the_seeds_server(
    recording: str, limits: Limits, cases: set[str]
) -> None:
    rows = [json.loads(line) for line in (DATA / recording).read_text(encoding="utf-8").splitlines()]
    storage = SqliteStorage(":memory:")
    replay: Replay
    settings = Settings(limits=limits, auth_secret=RECORDED_KEY, clock=lambda: replay.now / 1000)
    server = await start("127.0.0.1", 0, storage, settings)
    try:
        async with aiohttp.ClientSession() as session:
            replay = Replay(server.url, session)
            for row in rows:
                await replay.row(row)
    finally:
        await server.close()
        storage.close()
    assert replay.problems == []
    assert replay.differing == cases
    assert len(rows) == {"rest-v0.2.jsonl": 219, "rest-v0.2-expiry.jsonl": 18}[recording]
