"""Why a connection or a service is as it is."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from typing import Any

import click

from rondevud.ctl.common import Settings, ask, json_option, pass_settings, target_argument
from rondevud.ctl.output import one_line, printable, show_json, span, terminal_width

Data = dict[str, Any]
Line = tuple[str, str]

NEXT = {
    "keep": "nothing: the connection is up",
    "dialling": "dialling now",
    "dial": "dials again{in_}",
    "wait_for_peer": "waits for the peer to dial{in_}",
    "refresh": "publishes again{in_}",
    "publish": "publishes as soon as the signalling server lets it",
    "nothing": "nothing by itself",
}
"""What is done next, by the word for it; `in_` is when."""


NO_STUN = "none is configured ([transport] ice_servers): no help through NATs"


@click.command(short_help="Explain a connection or service on one page.")
@target_argument
@json_option
@pass_settings
def why(settings: Settings, target: str) -> None:
    """Explain a connection, or service:USER/FQN: how it is, by which path, what went wrong, what is done next.

    \b
    JSON: the row of `connections` or `services`, and
      {next, next_in, ice_servers, recent,
       signalling: {url, reachable, answered_ago, failed_ago, error}}
    for connections
      {link, channels, counters}, and where this daemon dials
      {max_attempts, offer: {offer_id, uuid}, dialled_ago}
    for services
      {open_offers: [{offer_id, age, expires_in, usable}], awaited}

    link is null or {kind, path, local, remote, local_candidates, remote_candidates, round_trip, silence, suspect};
    channels are those of `channels` with {verdicts: {in, out}, acknowledged_ago}; recent are the last events that tell
    something, [{number, at, name, data}]. Ages and spans are seconds.
    """
    answer = ask(settings, "why", target=target)
    if settings.json:
        show_json(answer)
        return
    for heading, text in explain(answer):
        _show(heading, text)


def explain(answer: Data) -> Iterator[Line]:
    """The page, line by line: a heading and a text."""
    if "open_offers" in answer:
        yield from _service(answer)
    else:
        yield from _connection(answer)
    yield from _signalling(answer)
    yield "STUN, TURN", ", ".join(answer["ice_servers"]) or NO_STUN
    for channel in answer.get("channels", ()) if "link" in answer else ():
        yield f"channel {channel['label']}", _channel(channel)
    for event in answer["recent"]:
        facts = {key: value for key, value in event["data"].items() if key not in {"service", "connection_id"}}
        words = " ".join(f"{key}={one_line(key, value)}" for key, value in facts.items() if value is not None)
        yield time.strftime("%m-%d %H:%M:%S", time.localtime(event["at"])), f"{event['name']} {words}".rstrip()


def _connection(answer: Data) -> Iterator[Line]:
    yield "connection", " ".join(filter(None, [answer["name"], answer["connection_id"]]))
    if answer["target"]:
        yield "to", answer["target"]
    else:
        yield "taken by", f"{answer['service']}, from {answer['peer_name'] or 'a peer without a name'}"
    yield (
        "state",
        answer["state"] + (", suspect: one end at least hears nothing of the other" if answer["suspect"] else ""),
    )
    yield (
        "peer",
        {"link": "a daemon (link)", "plain": "plain, without acknowledgements"}.get(
            answer["kind"], "unknown: there has been no contact yet"
        ),
    )
    yield "next", _next(answer)
    if answer["error"]:
        yield "last error", answer["error"]
    if answer.get("offer"):
        offer = answer["offer"]
        yield (
            "offer used",
            f"{_short(offer['offer_id'])} of service {offer['uuid']}, dialled {span(answer['dialled_ago'])} ago",
        )
    if answer["link"]:
        yield from _link(answer["link"])


def _link(link: Data) -> Iterator[Line]:
    if link["path"]:
        yield "path", f"{link['path']}: {link['local']} to {link['remote']}"
    yield "our candidates", ", ".join(link["local_candidates"]) or "none"
    yield "theirs", ", ".join(link["remote_candidates"]) or "none: found by its checks"
    if link["round_trip"] is not None:
        yield "round trip", span(link["round_trip"])
    if link["silence"] is not None:
        yield "last heard", f"{span(link['silence'])} ago"


def _service(answer: Data) -> Iterator[Line]:
    yield "service", answer["service"]
    yield "published", f"as {answer['uuid']}" if answer["published"] else "no"
    yield "next", _next(answer)
    if answer["error"]:
        yield "last error", answer["error"]
    yield "connections", f"{answer['connected']} of {answer['connections']} connected, {answer['awaited']} awaited"
    yield "offers", f"{answer['offers']} usable, {answer['pool_size']} wanted"
    for offer in answer["open_offers"]:
        old = "" if offer["usable"] else ", replaced"
        yield "", f"{_short(offer['offer_id'])}: {span(offer['age'])} old, ends in {span(offer['expires_in'])}{old}"


def _next(answer: Data) -> str:
    time = answer["next_in"]
    in_ = ""
    if time is not None:
        in_ = f", held for {span(time)}" if answer["next"] == "wait_for_peer" else f" in {span(time)}"
    text = NEXT[answer["next"]].format(in_=in_)
    if answer["next"] in {"dial", "dialling"} and answer["attempt"]:
        text += f" ({answer['attempt']} of {answer['max_attempts'] or 'endless'} attempts have failed)"
    if answer["next"] == "nothing" and answer.get("state") == "failed":
        text += "; `rondevuctl reconnect` tries again"
    return text


def _signalling(answer: Data) -> Iterator[Line]:
    state = answer["signalling"]
    if state["url"] is None:
        yield "signalling", "none is configured ([signalling] url)"
        return
    word = {True: "answers", False: "is not reachable", None: "was not asked yet"}[state["reachable"]]
    ago = "" if state["answered_ago"] is None else f"; last answer {span(state['answered_ago'])} ago"
    yield "signalling", f"{state['url']} {word}{ago}"
    if state["error"]:
        yield "", f"failed {span(state['failed_ago'])} ago: {state['error']}"


def _channel(channel: Data) -> str:
    words = [channel["state"], f"{channel['queue_size']} queued", f"{channel['waiting']} waiting"]
    for direction, verdict in channel["verdicts"].items():
        if verdict:
            count = "" if verdict["kind"] != "gap" else f" of {verdict['messages'] or '?'} messages"
            words.append(f"{direction}: {verdict['kind']}{count}")
    if channel["acknowledged_ago"] is not None:
        words.append(f"acknowledged {span(channel['acknowledged_ago'])} ago")
    return ", ".join(words)


def _short(offer_id: str) -> str:
    """Enough to tell it from others."""
    return offer_id if len(offer_id) <= 14 else f"{offer_id[:12]}…"


HEADINGS = 15
"""Characters of a heading."""


def _show(heading: str, text: str) -> None:
    first, rest = f"{printable(heading):{HEADINGS}} ", " " * (HEADINGS + 1)
    click.echo(textwrap.fill(
        printable(text), terminal_width(), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    ))  # fmt: skip


COMMANDS = (why,)
