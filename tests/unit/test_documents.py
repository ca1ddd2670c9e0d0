"""Manual pages and completions, made from what the programs say of themselves."""

from __future__ import annotations

import importlib.util
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from rondevud import config
from rondevud.access import Verb

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def documents():
    spec = importlib.util.spec_from_file_location("documents", ROOT / "installation/documents.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(documents, tmp_path_factory):
    directory = tmp_path_factory.mktemp("documents")
    documents.write(directory)
    return directory


@pytest.mark.parametrize("program", ["rondevud", "rondevuctl"])
def test_the_manual_has_every_command_and_every_option(documents, written, program):
    text = (written / f"man/{program}.1").read_text().replace("\\-", "-")
    group, _ = documents.PROGRAMS[program]
    found = list(documents.commands(group, [program]))
    assert len(found) > 5
    for path, command in found:
        section = text.split(f"\n.SS {' '.join(path[1:])}\n", 1)[1].split("\n.SS ", 1)[0]
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in section, (path, option)


def test_the_manual_of_the_configuration_is_the_example(written):
    text = (written / "man/rondevud.toml.5").read_text()
    for line in (ROOT / "config.example.toml").read_text().splitlines():
        assert line.replace("-", "").replace("'", "").replace("`", "") in re.sub(r"\\-|\\\([ag][aq]|\\\(ga", "", text)


def test_the_manual_of_the_configuration_explains_the_verbs_of_access(written):
    text = (written / "man/rondevud.toml.5").read_text()
    for verb in Verb:
        assert f".TP\n.B {verb.name.lower()}\n" in text


@pytest.fixture(scope="module")
def documentation(tmp_path_factory):
    """What is installed for people to read."""
    directory = tmp_path_factory.mktemp("documentation")
    command = ["bash", ROOT / "installation/documentation", directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert sorted(done.stdout.split()) == sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )
    return directory


def test_links_in_installed_documents_lead_somewhere(documentation):
    links = [
        (path, target)
        for path in documentation.rglob("*.md")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    ]
    assert len(links) > 20
    assert not [(path, target) for path, target in links if not (path.parent / target).exists()]


def test_examples_and_monitoring_are_installed(documentation):
    assert {path.name for path in documentation.iterdir()} > {"examples", "monitoring", "config.example.toml"}
    assert (documentation / "monitoring/rondevud.rules.yml").exists()
    assert not list(documentation.rglob("__pycache__"))


def put_configuration(path):
    script = (ROOT / "installation/install").read_text()
    function = re.search(r"^put_configuration\(\) \{.*?^\}\n", script, flags=re.MULTILINE | re.DOTALL)[0]
    command = [
        "bash",
        "-euc",
        f"umask 0; destdir={path.parent} prefix=/opt/x; {function} put_configuration /{path.name}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=50)


def test_a_fresh_configuration_is_small_and_changes_nothing(tmp_path):
    put_configuration(tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    assert config.parse(text, "x") == config.Config()
    assert len(text.splitlines()) < 15  # what changes seldom asks seldom at upgrades
    assert "/opt/x/share/doc/rondevud" in text
    assert stat.S_IMODE((tmp_path / "config.toml").stat().st_mode) == 0o640  # there may be credentials in it


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_configuration_that_is_there_is_never_written_over(tmp_path, kind):
    path = tmp_path / "config.toml"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
        put_configuration(path)
        assert path.readlink() == tmp_path / "elsewhere"
        assert not (tmp_path / "elsewhere").exists()
    else:
        path.write_text("mine")
        put_configuration(path)
        assert path.read_text() == "mine"


@pytest.mark.once
@pytest.mark.parametrize("name", ["rondevud.1", "rondevuctl.1", "rondevud.toml.5"])
def test_man_has_nothing_to_complain_of(written, name):
    assert shutil.which("groff"), "the package groff-base is needed"
    command = ["groff", "-man", "-Tutf8", "-ww", "-K", "utf8", "-z", str(written / "man" / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "cannot adjust line" not in line]) == (0, [])


@pytest.mark.once
def test_bash_understands_the_completions(written):
    for program in ("rondevud", "rondevuctl"):
        subprocess.run(["bash", "-n", written / "bash" / program], check=True, timeout=50)
        assert f"#compdef {program}\n" in (written / f"zsh/_{program}").read_text()
        assert f"complete --no-files --command {program}" in (written / f"fish/{program}.fish").read_text()
