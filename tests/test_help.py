"""Help teaches: each command says what it needs, what its exit codes mean and shows an example that it takes."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import typer

from streams.cli import app
from streams.demo.run import DemoOptions
from streams.settings import Settings
from tests.test_cli import COMMANDS, run

ROOT: Any = typer.main.get_command(app)
SETTINGS_OF_FLAGS = {
    "bootstrap_servers": "kafka.bootstrap_servers",
    "redis_url": "redis.url",
    "instance_id": "service.instance_id",
    "metrics_port": "service.metrics_port",
    "log_level": "service.log_level",
    "log_format": "service.log_format",
    "shards": "topics.shards",
    "partitions": "topics.partitions",
    "replication_factor": "topics.replication_factor",
}


MUST_BE_TOLD = {
    *(
        (name, "bootstrap_servers")
        for name in ("router", "oracle", "engine", "topics", "accept-offset", "resume", "rescale")
    ),
    *((name, "redis_url") for name in ("oracle", "engine")),
}
"""Where a command writes has no default."""


def walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


ALL = dict(walk(ROOT))
OPTIONS = [(name, param) for name, command in ALL.items() for param in command.params if param.name != "help"]


def help_of(name: str, width: int = 120) -> str:
    command = ALL[name]
    context = command.context_class(command, info_name=name, terminal_width=width, max_content_width=width)
    return str(command.get_help(context))


def test_every_command_is_walked() -> None:
    assert {name.split()[0] for name in ALL} == set(COMMANDS)


@pytest.mark.parametrize("name", ALL)
def test_help_says_what_is_needed_what_exit_codes_mean_and_an_example(name: str) -> None:
    text = help_of(name)
    assert re.search(r"\bNeeds (no|nothing|Kafka|Redis)", text), text
    assert re.search(r"\b(Prints?|Shows?|Shown|Logs go|said|named|compares?|Time)\b", text), text
    assert "Exit codes: 0 " in text
    assert "Example:\n" in text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_of_a_help_text_is_lost_to_markup(name: str, width: int) -> None:
    command = ALL[name]
    shown = "".join(help_of(name, width).split())
    written = command.help or ""
    texts = [written, *(param.help or "" for param in command.params if param.name != "help")]
    for text in texts:
        words = text.replace("\b", "").split()
        assert all(word in shown for word in words if any(sign in word for sign in "[]{}<>*`_")), text


@pytest.mark.parametrize(("name", "param"), OPTIONS, ids=[f"{name}-{param.name}" for name, param in OPTIONS])
def test_every_flag_says_its_default_and_a_setting_its_variable(name: str, param: Any) -> None:
    command = ALL[name]
    context = command.context_class(command, info_name=name)
    _, text = param.get_help_record(context)
    if param.required:
        assert "[required]" in text or param.param_type_name == "argument"
        return
    assert "default: " in text, f"{name} {param.name}: {text}"
    path = SETTINGS_OF_FLAGS.get(param.name)
    if path is not None and name not in ("demo", "scenario", "bench fills"):  # these take no settings
        section, field = path.split(".")
        assert f"MARGIN_{section.upper()}__{field.upper()}" in text
        default = getattr(getattr(Settings(), section), field)
        told = (name, param.name) in MUST_BE_TOLD
        assert f"default: {'none' if told else default or 'none'}" in text or "default: 0" in text


def test_the_defaults_of_the_demo_are_those_of_its_options() -> None:
    shown = {param.name: param.default for param in ALL["demo"].params}
    for field in fields(DemoOptions):
        if field.name in shown and shown[field.name] is not None:
            assert shown[field.name] == field.default, field.name


def examples(name: str) -> list[list[str]]:
    """The commands of an example, without what a shell does with them."""
    block = help_of(name, 200).partition("Example:\n")[2]
    lines = block.partition("\n\n")[0].splitlines()
    commands = []
    for part in " ".join(line.strip() for line in lines).split("&&"):
        words = [word for word in shlex.split(part.partition(">")[0]) if not re.match(r"[A-Z_]+=", word)]
        assert words[0] == "margin-clearing"
        commands.append(words[1:])
    return commands


@pytest.mark.parametrize("name", ALL)
def test_an_example_is_taken_by_its_command(name: str) -> None:
    parsed = []
    for arguments in examples(name):
        group, rest, path = ROOT, arguments, []
        context = ROOT.context_class(ROOT, info_name="margin-clearing")
        while hasattr(group, "commands"):
            subcommand, group, rest = group.resolve_command(context, rest)
            path.append(subcommand)
        assert group.make_context(path[-1], list(rest), parent=context).params is not None
        parsed.append(" ".join(path))
    assert name in parsed


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("statuss",), "status"),
        (("engine", "--bootstrap-server", "x"), "--bootstrap-servers"),
        (("explian",), "explain"),
    ],
)
def test_a_slip_of_the_finger_is_answered_with_what_was_meant(arguments: tuple[str, ...], suggested: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert suggested in done.stderr


def test_the_example_of_evaluate_is_evaluated() -> None:
    example = run("evaluate", "--example")
    assert example.returncode == 0
    done = run("evaluate", stdin=example.stdout)
    assert done.returncode == 0, done.stderr
    assert '"liquidatable":true' in done.stdout
    assert '"liquidatable":false' in done.stdout


def test_help_is_whole_as_a_process_prints_it() -> None:
    shown = run("evaluate", "--help", COLUMNS="100").stdout
    assert "[ records of risk.parameters.v1 ]" in shown
    assert "{ asset: amount }" in shown
