"""Users' environments and tools in processes and threads: whatever one does, the trainer goes on, with a reason."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest
import worlds

from vapo.errors import ConfigError, UnguardedError
from vapo.tasks.environments import serving
from vapo.tasks.environments.channels import (
    EnvironmentFaultError,
    EnvironmentLimits,
    EnvironmentServer,
    ProcessChannel,
    ThreadServer,
)
from vapo.tasks.environments.given import has_guard, importable_name, players_of
from vapo.tasks.environments.host import Host
from vapo.tasks.environments.offers import Offer, offer_of
from vapo.tasks.environments.players import Players
from vapo.tasks.environments.tool_calls import ToolCall, tool_calls
from vapo.types import Prompt, Reply, Verdict

FILE = Path(worlds.__file__)
PROMPT = Prompt("p", "say it", "7", columns={"start": 2, "seen": time})
LIMITS = EnvironmentLimits(2.0, 512, 1000)


def call(name: str, **arguments) -> str:
    import json

    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture(scope="module")
def guess():
    players = Players(EnvironmentServer(f"{FILE}:Guess", limits=LIMITS))
    yield players
    players.close()


@pytest.fixture(scope="module")
def counter():
    players = Players(EnvironmentServer(f"{FILE}:Counter", limits=LIMITS), right_at=0.99)
    yield players
    players.close()


def test_an_environment_takes_turns_in_a_process_of_its_own(guess: Players):
    one, other = guess(PROMPT, 5), guess(PROMPT, 6)
    assert (one.reset(), other.reset()) == ("go", "go")
    assert one.step("3") == Reply("no 1")
    assert one.step("print") == Reply("no 2")
    assert other.step("4") == Reply("no 1")
    assert one.step("7") == Reply("well done", True, Verdict("right", "named it"))
    for player in (one, other):
        player.close()
    assert one.left == {"answer": "7", "seed": 5, "turns": 3}


def test_an_async_environment_keeps_its_event_loop_until_it_is_closed():
    made: list[worlds.Connected] = []

    def make(answer: str) -> worlds.Connected:
        made.append(worlds.Connected(answer))
        return made[-1]

    offer = Offer(make, takes_turns=True)
    host = Host(offer, right_at=0.99, max_characters=100)
    prompt = {"id": "p", "text": "x", "answer": "7", "columns": {}}
    assert host.answer({"open": {"prompt": prompt, "seed": 0}}) == {"text": "go"}
    assert [host.answer({"step": word})["text"] for word in ("a", "b")] == ["a", "b"]
    assert host.answer({"end": True}) == {"left": {"get_reward": 4.0}}
    [environment] = made
    assert len(environment.loops) == 5
    assert len(set(environment.loops)) == 1
    assert environment.loops[0].is_closed()


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("hang", "no answer within task.environment_timeout_s=2 s"),
        ("raise", "the environment raised ValueError: a fault"),
        ("die", "the environment's process died"),
        ("memory", "MemoryError"),
        ("number", "step gave a int, not a text or a vapo.types.Reply"),
    ],
)
def test_a_fault_is_a_reason_and_costs_its_own_episode_only(guess: Players, word: str, reason: str):
    bad, good = guess(PROMPT, 0), guess(PROMPT, 0)
    bad.reset(), good.reset()
    with pytest.raises(EnvironmentFaultError, match=reason):
        bad.step(word)
    bad.close()
    assert good.step("3") == Reply("no 1")
    good.close()


def play(player) -> None:
    """An episode of one turn; raises EnvironmentFaultError."""
    try:
        player.reset()
        player.step("3")
    finally:
        player.close()


@pytest.mark.parametrize("place", ["reset", "step", "get_reward", "nowhere"])
def test_an_environment_is_closed_wherever_it_fails_and_its_processes_end(tmp_path: Path, place: str):
    players = Players(EnvironmentServer(f"{FILE}:Holder", limits=LIMITS))
    player = players(Prompt("p", "say it", place, columns={"start": str(tmp_path)}), 0)
    if place == "nowhere":
        play(player)
    else:
        with pytest.raises(EnvironmentFaultError, match=f"a fault in {place}"):
            play(player)
    assert (tmp_path / "closed").exists()
    started, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 5
    while runs(started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(started)
    players.close()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_lies_are_cut_or_invalid(guess: Players):
    player = guess(PROMPT, 0)
    player.reset()
    assert len(player.step("big").text) == LIMITS.max_characters + 1
    verdict = player.step("nan").verdict
    assert (verdict.status, verdict.reason) == ("invalid", "the verifier gave nan, not a finite score")
    player.close()


def test_a_server_that_was_killed_or_closed_starts_again(guess: Players):
    process = guess.server._parts["process"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(2):
        player = guess(PROMPT, 0)
        assert player.reset() == "go"
        player.close()
        guess.close()


def test_children_end_with_their_channel_and_with_the_server():
    players = Players(EnvironmentServer(f"{FILE}:Guess", limits=LIMITS))
    player = players(PROMPT, 0)
    player.reset()
    group = players.server._parts["process"].pid
    players.close()
    with pytest.raises(EnvironmentFaultError, match="process died"):
        player.step("3")
    with pytest.raises(ProcessLookupError):
        os.kill(group, 0)


def test_more_episodes_may_be_open_than_the_soft_limit_of_open_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 30, before[1]))
    try:
        players = Players(EnvironmentServer(f"{FILE}:Guess", limits=LIMITS))
        worlds = [players(PROMPT, seed) for seed in range(40)]
        try:
            assert [player.reset() for player in worlds] == ["go"] * 40
        finally:
            for player in worlds:
                player.close()
            players.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_episode_without_a_process_ends_with_the_reason_and_the_server_goes_on(monkeypatch):
    def no_process():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(serving.os, "fork", no_process)
    (door, served), (ours, theirs) = socket.socketpair(), socket.socketpair()
    for _ in range(2):  # the second opening is served, too
        socket.send_fds(door, [b"o" + b"%015d" % 1], [theirs.fileno()])
    theirs.close(), door.close()
    children: dict[int, bytes] = {}
    serving._serve_door(served, None, {}, children)  # type: ignore[arg-type] - no child needs the offer
    served.close()
    assert not children
    channel = ProcessChannel(None, b"", ours, LIMITS)  # type: ignore[arg-type] - nothing is killed
    with pytest.raises(EnvironmentFaultError, match="no process: Resource temporarily unavailable"):
        channel.ask({"open": {}})
    channel.close()


def test_an_environment_that_takes_turns_may_have_a_reward_and_no_tools_beside_it():
    assert offer_of(worlds.Scored, [], "tools").rewards
    assert not offer_of(worlds.Guess, [], "tools").rewards
    with pytest.raises(ConfigError, match="takes turns by step"):
        offer_of(worlds.Guess, [worlds.double], "tools")


def test_public_methods_are_tools_as_in_trl(counter: Players):
    (add, slow) = counter.server.tools
    assert add["function"]["name"] == "add"
    assert add["function"]["parameters"] == {
        "type": "object",
        "properties": {"amount": {"type": "integer", "description": "How much."}},
        "required": ["amount"],
    }
    assert slow["function"]["name"] == "slow"
    player = counter(PROMPT, 0)
    assert player.reset() == " from 2"
    reply = player.step(f"I add. {call('add', amount=2)}{call('sub')}{call('add', size=1)}")
    assert not reply.done
    results = [message["content"] for message in reply.messages]
    assert results[:2] == ["4", "{'error': \"there is no tool 'sub'; there are: add, slow\"}"]
    assert results[2].startswith("{'error': \"TypeError: ")
    assert player.step("It is 4.") == Reply(done=True)
    player.close()
    assert player.verdict == Verdict("right")
    assert player.left["count"] == 4
    assert player.left["get_reward"] == 1.0
    said = player.left["messages"]
    assert [message["role"] for message in said] == ["assistant", "tool", "tool", "tool", "assistant"]
    assert said[0]["content"] == "I add."
    assert said[0]["tool_calls"][0] == {"type": "function", "function": {"name": "add", "arguments": {"amount": 2}}}


def test_an_environment_that_hangs_in_a_tool_is_invalid(counter: Players):
    player = counter(PROMPT, 0)
    player.reset()
    with pytest.raises(EnvironmentFaultError, match="no answer within"):
        player.step(call("slow"))
    player.close()
    assert player.left == {"messages": [player.left["messages"][0]]}


def test_a_tool_without_state_that_fails_is_an_error_for_the_model_to_read():
    players = players_of(None, [worlds.double, worlds.sleepy, worlds.faulty], EnvironmentLimits(1.0, 512))
    assert isinstance(players.server, EnvironmentServer)
    player = players(PROMPT, 0)
    assert player.reset() == ""
    reply = player.step(call("sleepy") + call("double", number=4) + call("faulty") + "<tool_call>{not json</tool_call>")
    assert [message["content"] for message in reply.messages] == [
        "{'error': 'the tool gave no answer in time, or its process died'}",
        "8",
        "{'error': \"KeyError: 'no such thing'\"}",
        "{'error': 'the call is not JSON'}",
    ]
    player.close()
    players.close()


def test_objects_that_cannot_be_imported_play_in_threads():
    class Local(worlds.Counter):
        pass

    players = players_of(Local, [], EnvironmentLimits(0.5))
    assert isinstance(players.server, ThreadServer)
    player = players(PROMPT, 0)
    assert player.reset() == " from 2"
    assert player.step(call("add", amount=1)).text == "3"
    with pytest.raises(EnvironmentFaultError, match="no answer within"):
        player.step(call("slow"))
    player.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoReset", "NoReset has no reset()"),
        ("Idle", "neither step(response) nor other public methods"),
        ("Undescribed", "The tool 'add' cannot be described to the model"),
        ("Missing", "has no function 'Missing'"),
    ],
)
def test_what_is_no_environment_is_refused_at_the_start(name: str, message: str):
    with pytest.raises(ConfigError) as raised:
        EnvironmentServer(f"{FILE}:{name}")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_starts_a_run_when_it_is_imported_is_refused(tmp_path: Path):
    (tmp_path / "script.py").write_text("import vapo\nvapo.train({})\n")
    with pytest.raises(UnguardedError, match=r"script\.py, line 2"):
        EnvironmentServer(f"{tmp_path / 'script.py'}:World")


def test_names_of_objects(tmp_path: Path):
    assert importable_name(worlds.Counter) == f"{FILE.resolve()}:Counter"
    assert importable_name(EnvironmentLimits) == "vapo.tasks.environments.channels:EnvironmentLimits"
    assert importable_name(lambda: None) is None
    assert importable_name(worlds.Counter().add) is None
    assert has_guard('x = 1\nif __name__ == "__main__":\n    run()\n')
    assert not has_guard("run()\n")


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("no call", []),
        ('<tool_call>{"name": "f", "arguments": {"a": "}"}}</tool_call>', [ToolCall("f", {"a": "}"})]),
        ('<tool_call>{"name": "f"}', [ToolCall("f", {})]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [ToolCall("f", {"a": 1})]),
        ('<tool_call>["f"]</tool_call>', [ToolCall("", {}, 'a call is {"name": ..., "arguments": {...}}')]),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
         [ToolCall("f", {}, "the arguments are not a JSON object")]),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", [ToolCall("", {}, "the call is not JSON")]),
    ],
)  # fmt: skip
def test_calls_of_tools_are_read_as_hermes_models_write_them(text: str, calls: list[ToolCall]):
    assert tool_calls(text) == calls


def test_a_class_with_step_of_a_response_takes_turns_whatever_the_form():
    assert offer_of(worlds.Guess, (), "tools").takes_turns
    assert not offer_of(worlds.Counter, (), "auto").takes_turns
