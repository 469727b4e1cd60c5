"""The peers of ``bench.push``: each deploys the sample service from a bare repository's ``post-receive``.

All of them do the same: check the pushed commit out into a folder of its own, point ``current`` at it, stop the old
process, wait for its end, start the new one. That is what their users write; none of them has a way to keep the port
open meanwhile. Each is given its fastest way: no SSH, no gathering of facts, one host.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import CACHE, BenchError, Programs, Repository, asks, free_port

RESTART = """\
#!/bin/sh
# Stop the old process, wait for its end, start the new one.
cd "{folder}"
if [ -f pid ]; then
  kill "$(cat pid)" 2>/dev/null
  # Ended is ended, also where the machine's first process is slow to collect it.
  while grep -q '^State:.[^ZX]' "/proc/$(cat pid)/status" 2>/dev/null; do sleep 0.01; done
fi
cd "{folder}/current/"
PORT={port} setsid /usr/bin/env python3 hello.py >>"{folder}/app.log" 2>&1 </dev/null &
echo $! >"{folder}/pid"
"""
CHECKOUT = """\
#!/bin/sh
set -e
unset GIT_DIR GIT_QUARANTINE_PATH
mkdir -p "{folder}/releases/$1"
git --git-dir="{bare}" archive "$1" | tar -x -C "{folder}/releases/$1"
ln -sfn "{folder}/releases/$1" "{folder}/current.new"
mv -T "{folder}/current.new" "{folder}/current"
exec "{folder}/restart"
"""
SIGNED_POST = """\
#!/bin/sh
unset GIT_DIR
read -r _ after _
body="{{\\"after\\": \\"$after\\"}}"
mac=$(printf %s "$body" | openssl dgst -sha256 -hmac bench -r | cut -d' ' -f1)
curl -s -o /dev/null -H 'Content-Type: application/json' -H "X-Hub-Signature-256: sha256=$mac" \\
  --data-binary "$body" http://127.0.0.1:{hook_port}/hooks/deploy
"""
PYINFRA_HOOK = """\
#!/bin/sh
unset GIT_DIR GIT_QUARANTINE_PATH
read -r _ after _
cd "{folder}" && SHA=$after "{tool}" @local -y deploy.py >"{folder}/deploy.log" 2>&1 </dev/null
"""
PYINFRA_DEPLOY = """\
import os
from pyinfra.operations import files, server
sha = os.environ["SHA"]
release = "{folder}/releases/" + sha
files.directory(name="release", path=release)
server.shell(name="check out", commands=["git --git-dir={bare} archive " + sha + " | tar -x -C " + release])
files.link(name="current", path="{folder}/current", target=release, force=True)
server.shell(name="restart", commands=["{folder}/restart"])
"""
ANSIBLE_HOOK = """\
#!/bin/sh
unset GIT_DIR GIT_QUARANTINE_PATH
read -r _ after _
cd "{folder}" && ANSIBLE_PIPELINING=1 "{tool}" -i localhost, -c local -e sha=$after \\
  -e ansible_python_interpreter="{python}" deploy.yml >"{folder}/deploy.log" 2>&1 </dev/null
"""
ANSIBLE_DEPLOY = """\
- hosts: all
  gather_facts: false
  tasks:
    - {{name: release, file: {{path: "{folder}/releases/{{{{ sha }}}}", state: directory}}}}
    - name: check out
      shell: git --git-dir={bare} archive {{{{ sha }}}} | tar -x -C {folder}/releases/{{{{ sha }}}}
    - {{name: current, file: {{src: "{folder}/releases/{{{{ sha }}}}", dest: "{folder}/current", state: link}}}}
    - {{name: restart, command: "{folder}/restart"}}
"""


class Peer:
    """One peer, set up in a folder with a repository whose pushes it deploys.

    Args:
        name: As the table calls it.
        programs: Where it runs.
    """

    def __init__(self, name: str, programs: Programs) -> None:
        self.name = name
        self.port = free_port()
        self.repository = Repository(programs)
        self._programs = programs
        self._folder = programs.folder / "deployed"
        self._folder.mkdir()
        self._names = {"folder": self._folder, "bare": self.repository.bare, "port": self.port}
        self._write(self._folder / "restart", RESTART)

    def set_up(self, arrange: Callable[[Peer], None]) -> None:
        arrange(self)

    def _write(self, path: Path, text: str, **more: object) -> None:
        path.write_text(text.format(**self._names, **more))
        path.chmod(0o755)

    def _hook(self, text: str, **more: object) -> None:
        self._write(self.repository.bare / "hooks/post-receive", text, **more)

    def webhook(self) -> None:
        """Debian's ``webhook``, told by a signed POST, runs the script."""
        self._write(self._folder / "checkout", CHECKOUT)
        signed = {
            "type": "payload-hmac-sha256",
            "secret": "bench",
            "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
        }
        hook = {
            "id": "deploy",
            "execute-command": str(self._folder / "checkout"),
            "pass-arguments-to-command": [{"source": "payload", "name": "after"}],
            "trigger-rule": {"match": signed},
        }
        (self._folder / "hooks.json").write_text(json.dumps([hook]))
        port = free_port()
        words = ["-hooks", self._folder / "hooks.json", "-ip", "127.0.0.1", "-port", port]
        self._programs.start("webhook", shutil.which("webhook"), *words)
        self._hook(SIGNED_POST, hook_port=port)

    def pyinfra(self) -> None:
        """A deploy file over ``@local``."""
        self._write(self._folder / "deploy.py", PYINFRA_DEPLOY)
        self._hook(PYINFRA_HOOK, tool=tool("pyinfra"))

    def ansible(self) -> None:
        """A playbook over the local connection, without facts, with pipelining."""
        self._write(self._folder / "deploy.yml", ANSIBLE_DEPLOY)
        self._hook(ANSIBLE_HOOK, tool=tool("ansible-core"), python=tool("ansible-core").with_name("python"))

    def stop(self) -> None:
        file = self._folder / "pid"
        if not file.exists():
            return
        try:
            pid = int(file.read_text())
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and asks(self.port):
                time.sleep(0.02)
        except (ValueError, ProcessLookupError):
            pass


def tool(package: str) -> Path:
    """The command of a peer from PyPI, in an environment of its own, which is made at first use."""
    command = CACHE / package / "bin" / {"ansible-core": "ansible-playbook"}.get(package, package)
    if not command.exists():
        print(f"  installing {package} into {CACHE / package}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", CACHE / package], check=True, capture_output=True, timeout=60)
            install = [CACHE / package / "bin/python", "-m", "pip", "install", "-q", package]
            subprocess.run(install, check=True, capture_output=True, timeout=180)
        except (subprocess.SubprocessError, OSError) as error:
            raise BenchError(f"{package} cannot be installed: {error}") from error
    return command


PEERS: dict[str, Callable[[Peer], None]] = {
    "Debian's webhook and a script": Peer.webhook,
    "pyinfra, @local": Peer.pyinfra,
    "ansible-core, local connection": Peer.ansible,
}
