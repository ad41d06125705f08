"""`vapo export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vapo.cli.options import DebugOption, JsonOption
from vapo.errors import ConfigError, command
from vapo.json_text import json_text


class Dtype(StrEnum):
    """Precisions of an export."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run directory, or one of its checkpoints: RUN/checkpoints/step_000020."),
    ],
    dtype: Annotated[Dtype, typer.Option(help="Precision of the weights.")] = Dtype.BFLOAT16,
    critic: Annotated[bool, typer.Option("--critic", help="Export the critic; else the policy.")] = False,
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Export the adapters alone, as a PEFT folder (runs with model.policy_lora)."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder. Default: in the run, like RUN/policy-bfloat16.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Copy a trained model in another precision, with its tokenizer and model card: what serving engines load.

    policy/ and critic/ are float32, unless the run had model.dtype=bfloat16-weights. Of a checkpoint, shards of several
    training ranks are put together, and adapters are merged.
    """
    from vapo.session.evaluated_run import run_of
    from vapo.session.exported_folder import default_target, exported_folder
    from vapo.session.run_dirs import check_output_folder

    folder = exported_folder(run, critic=critic, adapter=adapter)
    target = out or default_target(folder, dtype.value)
    check_output_folder(target)

    from safetensors import SafetensorError

    from vapo.models.converted import convert  # imports torch, so only after what is cheap to check
    from vapo.session.whole_folders import whole_folder

    try:
        with whole_folder(folder, merged=not adapter) as source:
            size = convert(source, target, dtype.value)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"Cannot write {target}: {error}. Free space, or choose another --out.") from error
    if as_json:
        print(json_text({"from": str(folder), "folder": str(target), "dtype": dtype.value, "bytes": size}))
        return
    if adapter:
        how = "PeftModel.from_pretrained(base, ...)"
    elif critic and not _opens_with_transformers(folder):
        how = "vapo.models.loading.load_critic(...), or load_side_critic: transformers has no token classifier for it"
    else:
        loader = "AutoModelForTokenClassification" if critic else "AutoModelForCausalLM"
        how = f'{loader}.from_pretrained(..., dtype="{dtype.value}")'
    lines = [f"Exported  {target}  ({dtype.value}, {size / 1e6:,.1f} MB of weights)", f"Load      {how}"]
    if not critic and not adapter:
        lines.append(f"Measure   {command('eval', target, '--task', (run_of(folder) or run) / 'config.yaml')}")
    Console(soft_wrap=True).print("\n".join(lines), highlight=False, markup=False)


def _opens_with_transformers(critic: Path) -> bool:
    """Whether transformers has a token classifier for the critic of a run."""
    from vapo.models.critic import opens_with_transformers
    from vapo.models.pretrained import load_config
    from vapo.session.evaluated_run import run_of
    from vapo.session.run_dirs import load_run_config

    run = run_of(critic)
    trust = run is not None and load_run_config(run).sections.model.trust_remote_code
    return opens_with_transformers(load_config(critic, trust_remote_code=trust))
