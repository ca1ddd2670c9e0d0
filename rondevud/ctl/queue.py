"""What one channel holds, what became of what it held, and what is set aside."""

from __future__ import annotations

from typing import Any

import click

from rondevud.ctl.common import Settings, ask, connection_argument, json_option, label_argument, pass_settings
from rondevud.ctl.output import one_line, show_json, show_pairs, show_record, show_rows

COLUMNS = ("id", "attempts", "size", "enqueued_at", "failed_at", "head")

OUT = ("acknowledged", "expired", "overflow", "purged", "too_large", "damaged", "lost")
IN = ("taken", "purged_in", "overflow_in", "damaged_in")
"""What became of messages, by the words of the accounts, in the order in which they are told."""


@click.command()
@connection_argument
@label_argument
@click.option("--failed", is_flag=True, help="List what is set aside because programs died of it.")
@click.option(
    "--put-back",
    "--retry",
    metavar="ID",
    help="Let a message that is set aside, or `all`, wait for programs again.",
)
@click.option("--purge", is_flag=True, help="Remove what is queued (with --failed: what is set aside), for good.")
@click.option(
    "--direction",
    type=click.Choice(["out", "in", "both"]),
    help="What to remove: for the peer (out), for programs here (in), or both. [default: both]",
)
@json_option
@pass_settings
def queue(
    settings: Settings,
    target: str,
    label: str,
    *,
    failed: bool,
    put_back: str | None,
    purge: bool,
    direction: str | None,
) -> None:
    """Show, or with --purge remove, what is queued in a channel.

    JSON: one map as of `channels`: queue_size, queue_bytes and buffered_amount are of what the peer has not
    acknowledged, waiting and waiting_bytes of what waits for programs here; and queue_age and waiting_age (seconds, of
    the oldest), totals (what became of all messages so far: accepted, acknowledged, expired, overflow, purged, too_large,
    damaged, lost; received, taken, purged_in, overflow_in, damaged_in). With --purge {purged: {out, in}}, the messages
    removed. With --failed a list of {id, attempts, size, text, head, enqueued_at, failed_at}; with --failed --purge
    {purged: {failed}}; with --put-back {put_back}.
    """
    _check_options(failed=failed, put_back=put_back, purge=purge, direction=direction)
    where: dict[str, Any] = {"target": target, "label": label}
    if put_back is not None:
        answer = ask(settings, "put_back", **where, id=None if put_back == "all" else put_back)
        show_record(answer, as_json=settings.json)
    elif purge:
        answer = ask(settings, "purge", **where, direction="failed" if failed else direction or "both")
        show_record(answer, as_json=settings.json)
    elif failed:
        rows = ask(settings, "failed", **where)
        shown = rows if settings.json else [{**row, "head": _head(row)} for row in rows]
        show_rows(shown, COLUMNS, as_json=settings.json, none="nothing is set aside")
    else:
        _show(ask(settings, "queue", **where), as_json=settings.json)


def _check_options(*, failed: bool, put_back: str | None, purge: bool, direction: str | None) -> None:
    if direction is not None and not purge:
        raise click.UsageError("--direction goes with --purge")
    if direction is not None and failed:
        raise click.UsageError("--direction is not for what is set aside")
    if put_back is not None and purge:
        raise click.UsageError("--put-back and --purge exclude each other")


def _head(row: dict[str, Any]) -> str:
    """The first bytes of a message, as text where they are some."""
    head: bytes = row["head"]
    text = head.decode(errors="ignore") if row["text"] else repr(head)[2:-1]
    return text + ("…" if row["size"] > len(head) else "")


def _show(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(facts)
        return
    totals = facts.pop("totals", None)
    pairs = [(key, _aged(key, value)) for key, value in facts.items()]
    if totals is not None:
        pairs.append(("accepted", _became(totals, "accepted", OUT, queued=facts["queue_size"])))
        waiting = totals["received"] - sum(totals[word] for word in IN) - facts["failed"]
        pairs.append(("received", _became(totals, "received", IN, failed=facts["failed"], waiting=waiting)))
    show_pairs(pairs)


def _aged(key: str, value: Any) -> str:
    return f"{value:.0f} s" if key.endswith("_age") and value is not None else one_line(key, value)


def _became(totals: dict[str, int], first: str, words: tuple[str, ...], **held: int) -> str:
    """What became of the messages that were `first`: what there was none of is left out."""
    counts = {word.removesuffix("_in"): totals[word] for word in words} | held
    parts = [f"{count} {word.replace('_', ' ')}" for word, count in counts.items() if count]
    return f"{totals[first]}: {', '.join(parts)}" if parts else str(totals[first])


COMMANDS = (queue,)
