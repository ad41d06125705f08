"""Rollout files are plain gzip to everybody, and open in the middle with their index."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from vapo.algo.presets import GRPO
from vapo.trainer.batch import collate
from vapo.trainer.pricing import price
from vapo.trainer.record import RunFolder, read_episodes
from vapo.trainer.rollout_blocks import COLUMNS, index_of, index_path, read_index, write_blocks, write_index
from vapo.trainer.rollout_lines import whole_groups
from vapo.types import Episode, Prompt, Turn, Verdict


def episodes(groups: int, size: int) -> list[Episode]:
    return [
        Episode(
            Prompt(f"p{group}", f"question {group}", answer=group, token_ids=(9,)), sample,
            (Turn("policy", (1, 2), (-0.5, -0.25)),), f"answer {sample}", "stop", 3, Verdict("wrong", "no", score=0.5),
        )
        for group in range(groups) for sample in range(size)
    ]  # fmt: skip


def written(folder: Path, said: list[Episode], **how: Any) -> Path:
    run = RunFolder(folder)
    batch = collate(said, price(said, GRPO, max_response_tokens=8))
    run.rollouts("step_000001", said, batch, lambda ids: [str(i) for i in ids], **how)
    run.close()
    return folder / "rollouts" / "step_000001.jsonl.gz"


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_a_block_can_be_read_alone(tmp_path: Path):
    records = [{"prompt_id": f"p{n // 4}", "sample": n, "response": "x" * 9_000, "num_tokens": n} for n in range(40)]
    path = tmp_path / "step_000001.jsonl.gz"
    index = write_blocks(path, records)
    assert [row for _, row in index.blocks] == [0, 8, 16, 24, 32]
    start, end = index.blocks[2][0], index.blocks[3][0]
    block = gzip.decompress(path.read_bytes()[start:end]).splitlines()
    assert [json.loads(line)["sample"] for line in block] == list(range(16, 24))
    assert lines(path) == records


def test_the_index_says_what_each_line_is_about(tmp_path: Path):
    path = written(tmp_path / "run", episodes(3, 2), in_full=4)
    index = read_index(path)
    assert index is not None
    assert index.prompts == [["p0", "question 0"], ["p1", "question 1"], ["p2", "question 2"]]
    assert index.rows["prompt"] == [0, 0, 1, 1, 2, 2]
    assert index.rows["full"] == [True] * 4 + [False] * 2
    assert index.rows["tokens"] == [2] * 6
    assert set(index.rows) == set(COLUMNS)
    again = index_of(lines(path))
    assert (again.rows, again.prompts) == (index.rows, index.prompts)


def test_an_index_of_another_file_is_not_used(tmp_path: Path):
    path = written(tmp_path / "run", episodes(1, 2))
    assert read_index(path) is not None
    path.write_bytes(path.read_bytes() + gzip.compress(b"{}\n"))
    assert read_index(path) is None
    index_path(path).write_bytes(b"junk")
    assert read_index(path) is None
    index_path(path).unlink()
    assert read_index(path) is None


def test_responses_beyond_the_limit_keep_text_and_verdict(tmp_path: Path):
    path = written(tmp_path / "run", episodes(3, 2), in_full=2, final_answer=lambda response: response[-1])
    first, *_, last = lines(path)
    assert first["tokens"] == ["1", "2"]
    assert first["logp"] == [-0.5, -0.25]
    assert (last["response"], last["verdict"], last["reason"], last["answer"]) == ("answer 1", "wrong", "no", 2)
    assert (last["final_answer"], last["score"], last["num_tokens"]) == ("1", 0.5, 2)
    assert not {"tokens", "token_ids", "logp", "advantage"} & last.keys()
    assert [e.prompt.id for e in read_episodes(path)] == ["p0", "p0"]


def test_groups_are_written_in_full_or_not_at_all():
    assert whole_groups(episodes(3, 4), 12) == 12
    assert whole_groups(episodes(3, 4), 11) == 8
    assert whole_groups(episodes(3, 4), 3) == 3  # of a group larger than the limit, as many as that
    assert whole_groups(episodes(3, 4), 0) == 0


def test_a_task_whose_answer_cannot_be_found_or_written_does_not_stop_the_record(tmp_path: Path):
    def raises(response: str) -> str:
        raise ValueError(response)

    said = episodes(1, 2)
    odd = Prompt("p0", "question", answer={1, 2}, token_ids=(9,))
    long = Prompt("p1", "question", answer="x" * 5_000, token_ids=(9,))
    said = [Episode(odd, 0, said[0].turns, "a", "stop", 0), Episode(long, 0, said[0].turns, "a", "stop", 0)]
    first, second = lines(written(tmp_path / "run", said, final_answer=raises))
    assert (first["answer"], first["final_answer"]) == ("{1, 2}", None)
    assert len(second["answer"]) == 2_000


def test_an_index_is_small(tmp_path: Path):
    records = ({"prompt_id": str(n // 16), "prompt": f"prompt {n // 16}", "verdict": "right"} for n in range(8192))
    write_index(write_blocks(tmp_path / "a.jsonl.gz", records), index_path(tmp_path / "a.jsonl.gz"))
    assert index_path(tmp_path / "a.jsonl.gz").stat().st_size < 50_000
