"""The ``waybill`` command.

``COMMANDS`` is the one table of what there is: ``--help`` prints it without importing anything heavy, so that it
answers at once, and a command's module is imported only when that command runs.
"""

from __future__ import annotations

import sys

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:attribute, one sentence for the overview)
    "init": ("waybill.cli.project:init", "Write a working waybill.yml for this repository."),
    "check": ("waybill.cli.project:check", "Say whether the service files of a checkout are right."),
    "schema": ("waybill.cli.project:schema", "Print the JSON Schema of waybill.yml, for editors."),
    "lock": ("waybill.cli.vault:lock", "Lock an environment's variables into the file that is committed."),
    "unlock": ("waybill.cli.vault:unlock", "Write an environment's variables where git ignores them."),
    "edit": ("waybill.cli.vault:edit", "Change locked variables in $EDITOR."),
    "rotate": ("waybill.cli.vault:rotate", "Make a new key for an environment and encrypt every value anew."),
    "run": ("waybill.cli.vault:run", "Run a command with an environment's variables."),
    "keys": ("waybill.cli.vault:keys", "Show, list, grant and revoke who can open an environment."),
    "serve": ("waybill.cli.serve:serve", "Run the server until it is told to stop."),
    "status": ("waybill.cli.status:status", "Show what runs where, and what is under way."),
    "enroll": ("waybill.cli.enroll:enroll", "Make an enrolment token, with which a machine becomes a host."),
    "grant": ("waybill.cli.grants:app", "Say which repository, branches and hosts an environment may use."),
    "token": ("waybill.cli.tokens:app", "Create, list and revoke tokens."),
    "login": ("waybill.cli.login:login", "Remember a server, and a token for it."),
    "hook": ("waybill.cli.hook:app", "Tell the server of pushes to a bare repository."),
    "agent": ("waybill.cli.agent:app", "Run the agent of this host, or ask it: status, logs, rollback, hold."),
}

PLAIN: dict[str, str] = {
    # Run by git while a person waits: no more than the standard library is imported for these.
    "hook post-receive": "waybill.cli.post_receive",
}


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its status (0 done, 1 failed, others in docs/reference/exit-codes.md)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0)
    if arguments[0] in ("-V", "--version"):
        from waybill import __version__

        print(f"waybill {__version__}")
        sys.exit(0)
    if (plain := PLAIN.get(" ".join(arguments[:2]))) is not None:
        from importlib import import_module

        sys.exit(import_module(plain).main(arguments[2:]))
    from waybill.cli.run import run

    sys.exit(run(arguments, COMMANDS))


def overview() -> str:
    """The text of ``waybill --help``."""
    width = max((len(name) for name in COMMANDS), default=0)
    rows = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["Usage: waybill COMMAND [OPTIONS]", "", "Push a branch, and the exact commit runs on every host.", ""]
        + (["Commands:", *rows, ""] if rows else [])
        + ["waybill COMMAND --help says more. Every command knows --json."]
    )
