"""``waybill completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

from typing import Literal

from waybill.cli.output import Json, emit


def completion(shell: Literal["bash", "zsh", "fish"], /, *, json: Json = False) -> None:
    """Print the completion script of a shell.

    bash: waybill completion bash > ~/.local/share/bash-completion/completions/waybill
    zsh: waybill completion zsh > a folder of $fpath, as _waybill
    fish: waybill completion fish > ~/.config/fish/completions/waybill.fish

    Args:
        shell: bash, zsh or fish.
        json: Print JSON.
    """
    import importlib

    import cyclopts

    from waybill.cli.main import COMMANDS

    root = cyclopts.App(name="waybill", version_flags=[])
    for name, (place, summary) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        root.command(found, name=name, **({} if isinstance(found, cyclopts.App) else {"help": summary}))
    script = root.generate_completion(prog_name="waybill", shell=shell)
    if json:
        emit({"shell": shell, "script": script})
        return
    print(script)
