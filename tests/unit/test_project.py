"""What must agree between the files of the project."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import rondevu_client
import rondevud
from rondevud import config

ROOT = Path(__file__).parents[2]


def pyproject(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def example() -> str:
    return (ROOT / "config.example.toml").read_text(encoding="utf-8")


def uncommented(text: str) -> str:
    """The example with every commented setting switched on; prose stays a comment."""
    setting = re.compile(r"# ( *(?:[a-z_]+ = |\[\[|[\]\"{]).*)")
    return "\n".join(found[1] if (found := setting.fullmatch(line)) else line for line in text.splitlines())


def sections():
    """Each section of the configuration with its name in the file."""
    for name, field in config.Config.model_fields.items():
        yield field.alias or name, config._section_in(field.annotation)
    yield "connection.channels", config.ChannelConfig


def test_daemon_and_client_have_one_version():
    assert rondevud.__version__ == rondevu_client.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", rondevud.__version__)


def test_each_project_file_takes_the_version_from_the_client():
    folders = [folder for folder in (ROOT, ROOT / "client_lib") if (folder / "pyproject.toml").exists()]
    for folder in folders:
        data = pyproject(folder)
        if "version" in data["project"]:
            assert data["project"]["version"] == rondevud.__version__, folder
        else:
            path = folder / data["tool"]["hatch"]["version"]["path"]
            assert f'__version__ = "{rondevud.__version__}"' in path.read_text(encoding="utf-8"), folder


def test_the_changelog_speaks_of_this_version_or_of_what_is_unreleased():
    headings = re.findall(
        r"^## \[?([^\]\n ]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert headings
    assert headings[0] in {"Unreleased", rondevud.__version__}


def test_the_commands_are_where_the_readme_and_the_demo_say():
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    command = ["make", "-C", str(ROOT), "--dry-run", "demo"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True, env=environ).stdout
    assert ".venv/bin/rondevud demo" in said
    assert re.search(r"^echo .* \. \.venv/bin/activate\"$", said, flags=re.MULTILINE)
    assert "\n. .venv/bin/activate " in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"DEBFULLNAME": "Ann B", "DEBEMAIL": "ann@example.org"}, r"Ann B <ann@example\.org>"),
        ({"DEBFULLNAME": "Ann B", "DEBEMAIL": "Eve C <eve@example.org>"}, r"Eve C <eve@example\.org>"),
        ({"GIT_CONFIG_GLOBAL": "gitconfig"}, r"Git D <git@example\.org>"),
        ({"GIT_CONFIG_GLOBAL": "gitconfig", "DEBEMAIL": "ann@example.org"}, r"Git D <ann@example\.org>"),
        ({"GIT_CONFIG_GLOBAL": "/dev/null"}, r"(\S+) <\1@\S+\.invalid>"),
    ],
)
def test_the_maintainer_of_a_package_is_who_makes_it(tmp_path, environ, said):
    (tmp_path / "gitconfig").write_text("[user]\nname = Git D\nemail = git@example.org\n")
    surroundings = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tmp_path), **environ}
    command = ["bash", str(ROOT / "installation/maintainer")]
    done = subprocess.run(
        command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=50, check=True
    )
    assert re.fullmatch(said + r"\n", done.stdout)
    assert "maintainer=$(bash installation/maintainer)" in (ROOT / "installation/deb").read_text()


def test_the_example_configuration_changes_nothing():
    assert config.parse(example(), "config.example.toml") == config.Config()


@pytest.mark.parametrize(("section", "key"), [(name, key) for name, model in sections() for key in model.model_fields])
def test_every_key_stands_in_the_example(section, key):
    # Channels take any key of [queue]; those are explained there.
    if section == "connection.channels" and key in config.QueueConfig.model_fields:
        section = "queue"
    text = example()
    name = section.split(".")[0]
    start = re.search(rf"^(# \[)?\[?\[?{name}\]", text, flags=re.MULTILINE)
    assert start, f"no section {section}"
    body = text[start.end() :]
    body = body[: next((found.start() for found in re.finditer(r"^(# )?\[", body, flags=re.MULTILINE)), len(body))]
    assert re.search(rf"\b{key}\b", body), f"{key} is missing in [{section}]"


def test_the_example_with_everything_switched_on_is_refused_only_for_what_is_not_in_this_version():
    with pytest.raises(config.ConfigError) as refused:
        config.parse(uncommented(example()), "example")
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["transport.port_range"]
    assert all(line.endswith("is not in this version") for line in lines)


def test_the_example_shows_the_defaults():
    text = uncommented(example())
    for key in ("port_range",):
        text = re.sub(rf"^{key}.*$", "", text, flags=re.MULTILINE)
    shown = config.parse(text, "example")
    for name in ("rendezvous", "queue", "reconnect", "access"):
        resolved, default = getattr(shown, name), getattr(config.Config(), name)
        differing = {key for key in type(default).model_fields if getattr(resolved, key) != getattr(default, key)}
        assert differing <= {"max_attempts", "max_queue_size", "max_queue_bytes", "max_message_age", "overflow", "rule"}
    assert config.queue_limits(shown.queue) == config.queue_limits(config.QueueConfig())
    (service,) = shown.services
    (connection,) = shown.connections
    example_only = {"username", "fqn", "metadata", "queue", "reconnect"}
    plain = config.ServiceOptions()
    for key in set(config.ServiceOptions.model_fields) - example_only:
        assert getattr(service, key) == getattr(plain, key), key
    assert [channel.label for channel in connection.channels] == ["main", "telemetry", "position"]
