"""Real git repositories for tests."""

import os
import subprocess
from pathlib import Path

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


class Repo:
    """A bare repository and a clone that pushes to it."""

    def __init__(self, folder: Path) -> None:
        self.bare, self.work = folder / "hello.git", folder / "hello"
        git(folder, "init", "-q", "--bare", "-b", "main", str(self.bare))
        git(folder, "init", "-q", "-b", "main", str(self.work))
        git(self.work, "remote", "add", "origin", str(self.bare))

    def commit(self, files: dict[str, str | None], message: str = "change") -> str:
        """Write (None deletes) and commit files; returns the commit's id."""
        for name, text in files.items():
            path = self.work / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "--allow-empty", "-m", message)
        return self.head()

    def push(self, branch: str = "main", *, force: bool = False) -> None:
        """Push the clone's HEAD to a branch."""
        git(self.work, "push", "-q", *(["--force"] if force else []), "origin", f"HEAD:refs/heads/{branch}")

    def head(self) -> str:
        """The clone's HEAD."""
        return git(self.work, "rev-parse", "HEAD").strip()


def git(cwd: Path, *arguments: str) -> str:
    """Run git, and say what it complained of when it fails."""
    done = subprocess.run(["git", *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
