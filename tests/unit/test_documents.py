"""Manual pages and completions, made from what the programs say of themselves."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
