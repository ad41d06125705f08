"""vLLM on a CPU, in this process: seconds of a rollout."""

from __future__ import annotations

import os
import time

from protocol import Channel

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its fastest way here: no process between
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the core was chosen for this process already
}


def main() -> None:
    channel = Channel()
    job = channel.job
    import torch
    import vllm
    from vllm.sampling_params import RequestOutputKind

    torch.set_num_threads(job["threads"])
    llm = vllm.LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype="float32",
        max_model_len=max(map(len, job["prompts"])) + job["max_tokens"],
        max_num_seqs=job["settings"]["max_num_seqs"],
        enforce_eager=job["settings"]["eager"],
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    channel.send(name=f"vllm {vllm.__version__}", torch=torch.__version__)
    seed = 0
    while True:
        command = channel.wait()
        lengths, limit = channel.lengths(command), channel.limit(command)
        params = []
        for i in range(len(prompts)):
            seed += 1
            params.append(
                vllm.SamplingParams(
                    max_tokens=lengths[i] if lengths else limit,
                    temperature=1.0,
                    ignore_eos=True,
                    stop_token_ids=[] if lengths else job["stop"],
                    logprobs=0,
                    detokenize=False,
                    seed=seed if job["settings"]["seeded"] else None,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
            )
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        channel.send(seconds=seconds, tokens=sum(len(output.outputs[0].token_ids) for output in outputs))


if __name__ == "__main__":
    main()
