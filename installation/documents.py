"""Manual pages and completions, from what the programs say of themselves with ``--help``.

``documents.py DIRECTORY`` writes ``man/``, ``bash/``, ``zsh/`` and ``fish/`` into the directory; run it with an interpreter
that has rondevud. The manual page of the configuration file is the commented example.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from rondevud import __version__
from rondevud.ctl.main import main as rondevuctl
from rondevud.main import main as rondevud

ROOT = Path(__file__).parents[1]

PROGRAMS: dict[str, tuple[click.Group, str]] = {
    "rondevud": (rondevud, "durable WebRTC data channels for every program of a machine"),
    "rondevuctl": (rondevuctl, "see and use the rondevud of this machine"),
}

SHELLS = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
"""Names of the files, as each shell looks for them."""

FILES = """\
.SH FILES
.TP
.I /etc/rondevud/config.toml
Configuration of the daemon of the machine; see
.BR rondevud.toml (5).
.TP
.I /etc/rondevud/keys/USER.key
Keys of user names, which the service takes at its start.
.TP
.I /var/lib/rondevud
Its state: queues, sessions, keys.
.TP
.I /run/rondevud/rondevud.sock
Where programs find it.
.SH SEE ALSO
.BR rondevud (1),
.BR rondevuctl (1),
.BR rondevud.toml (5)
"""


def roff(text: str) -> str:
    """`text` with nothing in it that roff would take for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in escaped.splitlines())


def paragraphs(text: str) -> Iterator[str]:
    """The text of a help, in click's own notation: a paragraph behind a backspace keeps its lines."""
    for paragraph in text.replace("\f", "").split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            yield "\n".join([".PP", ".nf", *(roff(line) for line in lines[1:]), ".fi"])
        elif lines:
            yield f".PP\n{roff(' '.join(line.strip() for line in lines))}"


def context_of(command: click.Command, path: list[str]) -> click.Context:
    """As when it is called: what the program's group sets holds for all its commands."""
    return click.Context(command, info_name=path[-1], **PROGRAMS[path[0]][0].context_settings)


def usage(command: click.Command, path: list[str]) -> str:
    pieces = command.collect_usage_pieces(context_of(command, path))
    return "\n".join([f".B {roff(' '.join(path))}", roff(" ".join(pieces))])


def options(command: click.Command, path: list[str]) -> Iterator[str]:
    context = context_of(command, path)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # arguments are explained in the text
            yield f".TP\n.B {roff(record[0])}\n{roff(record[1])}"


def commands(group: click.Group, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    """All commands that do something, with the words that name them."""
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, [*path, name])
        else:
            yield [*path, name], command


def manual(program: str) -> str:
    group, purpose = PROGRAMS[program]
    lines = [
        f'.TH {program.upper()} 1 "" "rondevud {__version__}"',
        f".SH NAME\n{program} \\- {purpose}",
        f".SH SYNOPSIS\n{usage(group, [program])}",
        ".SH DESCRIPTION",
        *paragraphs(group.help or ""),
        ".SH OPTIONS",
        *options(group, [program]),
        ".SH COMMANDS",
    ]
    for path, command in commands(group, [program]):
        lines += [f".SS {roff(' '.join(path[1:]))}", usage(command, path)]
        lines += [*paragraphs(command.help or ""), *options(command, path)]
    lines += [".SH NOTES", *paragraphs(str(group.epilog or "")), FILES]
    return re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", "\n".join(lines), flags=re.MULTILINE)


def verbs_of_access() -> Iterator[str]:
    """The table of the README, as paragraphs with a tag."""
    part = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("### Access for other users\n", 1)[1].split("\n#", 1)[0]
    )
    for verb, meaning in re.findall(r"^\| `(\w+)` \| (.*) \|$", part, flags=re.MULTILINE):
        yield f".TP\n.B {roff(verb)}\n{roff(meaning.replace('`', ''))}"


def manual_of_configuration() -> str:
    example = (ROOT / "config.example.toml").read_text(encoding="utf-8")
    return "\n".join(
        [
            f'.TH RONDEVUD.TOML 5 "" "rondevud {__version__}"',
            ".SH NAME\nrondevud.toml \\- configuration of rondevud",
            ".SH SYNOPSIS\n.I /etc/rondevud/config.toml\n.br\n.I ~/.config/rondevud/config.toml",
            ".SH DESCRIPTION\nEvery key there is, with its default or an example, as TOML:",
            ".PP\n.nf",
            roff(example),
            ".fi",
            ".SH ACCESS",
            "The daemon's own user and root may do everything, others what a rule",
            ".RI ( [[access.rule]] )",
            "allows them with one of these verbs:",
            *verbs_of_access(),
            ".PP",
            "Who is refused is told",
            ".BR access_denied ,",
            "and the log says so. To open the socket at all, one has to be of its group:",
            ".nf",
            "usermod \\-aG rondevud USER",
            ".fi",
            FILES,
        ]
    )


def completion(program: str, shell: str) -> str:
    script = get_completion_class(shell)
    assert script is not None, shell
    return str(script(PROGRAMS[program][0], {}, program, f"_{program.upper()}_COMPLETE").source())


def write(directory: Path) -> None:
    files = {f"man/{program}.1": manual(program) for program in PROGRAMS}
    files["man/rondevud.toml.5"] = manual_of_configuration()
    for shell, name in SHELLS.items():
        files |= {f"{shell}/{name.format(program)}": completion(program, shell) for program in PROGRAMS}
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
