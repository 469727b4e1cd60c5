"""The ``waybill`` command.

``COMMANDS`` is the one table of what there is: ``--help`` prints it without importing anything heavy, so that it
answers at once, and a command's module is imported only when that command runs.
"""

from __future__ import annotations

import sys

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:attribute, one sentence for the overview)
    "init": ("waybill.cli.project:init", "Write a working waybill.yml for the repository you stand in."),
    "check": (
        "waybill.cli.project:check",
        "Say whether the service files of a checkout are right, and what they mean.",
    ),
    "schema": ("waybill.cli.project:schema", "Print the JSON Schema of waybill.yml, for editors."),
    "lock": (
        "waybill.cli.vault:lock",
        "Lock .waybill/ENVIRONMENT.yml (or .env) into the .enc file beside it, which is committed.",
    ),
    "unlock": ("waybill.cli.vault:unlock", "Write the plain file, which git ignores, from the locked one."),
    "edit": ("waybill.cli.vault:edit", "Change values in $EDITOR, without a plain file in the checkout."),
    "rotate": (
        "waybill.cli.vault:rotate",
        "Make a new key and encrypt every value anew; hosts that had the key get the new one.",
    ),
    "run": (
        "waybill.cli.vault:run",
        "Run a command with the variables in its environment, and nowhere else: waybill run ENVIRONMENT -- COMMAND.",
    ),
    "keys": ("waybill.cli.vault:keys", "Who can open an environment."),
    "login": ("waybill.cli.login:login", "Remember a server, and a token for it."),
    "status": ("waybill.cli.status:status", "Show what runs where, and what is under way."),
    "deploy": ("waybill.cli.rollouts:deploy", "Deploy a branch's head or a commit, and follow it until it is live."),
    "rollback": (
        "waybill.cli.rollouts:rollback",
        "Go back to a known-good release with its own variables, and follow it until it is live.",
    ),
    "cancel": (
        "waybill.cli.rollouts:cancel",
        "Stop a rollout, on its hosts too; hosts that had switched go back to what was good.",
    ),
    "rollout": ("waybill.cli.rollouts:app", "List rollouts, show or follow one."),
    "logs": ("waybill.cli.logs:logs", "Show the log of a service, from all its hosts."),
    "events": ("waybill.cli.events:events", "Show what happened, and with -f what happens."),
    "doctor": (
        "waybill.cli.doctor:doctor",
        "Say what is wrong with the server, its hosts and the way to them, each with the fix.",
    ),
    "serve": ("waybill.cli.serve:serve", "Run the server until it is told to stop."),
    "enroll": ("waybill.cli.enroll:enroll", "Make an enrolment token, with which a machine becomes a host."),
    "hosts": ("waybill.cli.hosts:app", "List hosts, change their labels, revoke them, take services off them."),
    "repository": ("waybill.cli.repositories:app", "Tell the server of git repositories, and how it may read them."),
    "grant": ("waybill.cli.grants:app", "Say which repository, branches and hosts an environment may use."),
    "token": ("waybill.cli.tokens:app", "Create, list and revoke tokens."),
    "hook": ("waybill.cli.hook:app", "Tell the server of pushes to a bare repository."),
    "agent": ("waybill.cli.agent:app", "Run the agent of this host, or ask it."),
    "completion": ("waybill.cli.completion:completion", "Print the completion script of a shell."),
    "races": ("waybill.cli.races:app", "Find data races in logs, and keep one issue for each."),
}

PLAIN: dict[str, str] = {
    # Run by git while a person waits: no more than the standard library is imported for these.
    "hook post-receive": "waybill.cli.post_receive",
    # Runs for months on hosts: without what only reads command lines it is 9 MiB smaller.
    "agent run": "waybill.cli.agent_run",
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
