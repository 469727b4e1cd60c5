"""What ``waybill init`` writes for a repository: the parser reads it, and it starts what a person would start."""

import json
import subprocess

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servicefile_drawn import calm
from servicefile_small import Small
from waybill.deploy.servicefile_guess import READ, Tree
from waybill.deploy.servicefile_init import STARTS, draft, slug, start
from waybill.deploy.servicefile_parse import parse


class Systemd(Small):
    name = "systemd"


DRIVERS = {"systemd": Systemd}


def tree(files, name="shop", branch="main"):
    texts = {path: text for path, text in files.items() if path in READ}
    return Tree(name=name, branch=branch, files=frozenset(files), texts=texts)


def drafted(files, **more):
    made = draft(tree(files, **more))
    return made, parse(made.text, "waybill.yml", DRIVERS)


REPOSITORIES = [
    # files, template, build, output, run, words of what is told
    (
        {"requirements.txt": "flask\ngunicorn\n", "app.py": "import flask\napi = flask.Flask(__name__)\n"},
        "python",
        "python3 -m pip install --target vendor -r requirements.txt",
        ".",
        ["env", "PYTHONPATH=vendor", "python3", "app.py"],
        "python3 app.py starts it",
    ),
    (
        {"requirements.txt": "flask\ngunicorn\n", "app.py": "from flask import Flask\napi = Flask(__name__)\n"},
        "python",
        "python3 -m pip install --target vendor -r requirements.txt",
        ".",
        ["env", "PYTHONPATH=vendor", "python3", "-m", "gunicorn", "app:api"],
        "gunicorn serves app:api",
    ),
    (
        {"pyproject.toml": '[project]\nname = "Shop_API"\n', "main.py": "app: FastAPI = FastAPI()\n"},
        "python",
        "python3 -m pip install --target vendor .",
        ".",
        ["sh", "-c", 'PYTHONPATH=vendor exec python3 -m uvicorn main:app --host 0.0.0.0 --port "$PORT"'],
        "uvicorn serves main:app",
    ),
    (
        {"pyproject.toml": "[project]\nname='x'\n[project.scripts]\nx='x.cli:main'\n", "x/__init__.py": ""},
        "python",
        "python3 -m pip install --target vendor .",
        ".",
        ["env", "PYTHONPATH=vendor", "python3", "-c", "import sys; from x.cli import main; sys.exit(main())"],
        "x.cli:main",
    ),
    (
        {"pyproject.toml": "[project]\nname='x'\n", "src/x/__main__.py": ""},
        "python",
        "python3 -m pip install --target vendor .",
        ".",
        ["env", "PYTHONPATH=vendor", "python3", "-m", "x"],
        "python3 -m x starts it",
    ),
    ({"server.py": "print(1)"}, "python", None, None, ["python3", "server.py"], "python3 server.py starts it"),
    (
        {"manage.py": "", "shop/wsgi.py": "", "requirements.txt": "Django\nGunicorn==23\n"},
        "python",
        "python3 -m pip install --target vendor -r requirements.txt",
        ".",
        ["env", "PYTHONPATH=vendor", "python3", "-m", "gunicorn", "shop.wsgi"],
        "Django",
    ),
    (
        {"requirements.txt": "", "app.py": "", "Procfile": "release: x\nweb: gunicorn app:app --workers 2\n"},
        "python",
        "python3 -m pip install --target vendor -r requirements.txt",
        ".",
        ["env", "PYTHONPATH=vendor", "gunicorn", "app:app", "--workers", "2"],
        "Procfile",
    ),
    (
        {"package.json": '{"name": "@acme/shop", "dependencies": {"a": "1"}}', "package-lock.json": "", "index.js": ""},
        "node",
        "npm ci",
        ".",
        ["node", "index.js"],
        "node index.js",
    ),
    (
        {"package.json": '{"scripts": {"start": "NODE_ENV=x node a.js", "build": "tsc"}}', "yarn.lock": ""},
        "node",
        "sh -c yarn install --frozen-lockfile && yarn run build",
        ".",
        ["yarn", "start"],
        "start script",
    ),
    (
        {"package.json": '{"scripts": {"build": "vite build"}, "devDependencies": {"vite": "6"}}', "index.html": ""},
        "node",
        "sh -c npm install && npm run build",
        "dist",
        ["sh", "-c", 'exec python3 -m http.server "$PORT"'],
        "web pages to dist/",
    ),
    ({"package.json": "[not json"}, "node", None, None, ["node", "server.js"], "server.js"),
    (
        {"go.mod": "module example.org/acme/shop/v2\n", "main.go": "", "Dockerfile": "FROM x\nEXPOSE 9000\n"},
        "go",
        "go build -o dist/shop .",
        "dist",
        ["./shop"],
        "Dockerfile exposes",
    ),
    (
        {"go.mod": "module example.org/tools\n", "cmd/api/main.go": "", "cmd/job/main.go": ""},
        "go",
        "go build -o dist/api ./cmd/api",
        "dist",
        ["./api"],
        "./cmd/api",
    ),
    (
        {"Cargo.toml": '[package]\nname = "shop"\n', "Cargo.lock": "", "src/main.rs": ""},
        "rust",
        "cargo build --release --locked",
        "target/release/shop",
        ["./shop"],
        "cargo makes the program shop",
    ),
    (
        {"public/index.html": "<h1>"},
        "static",
        None,
        None,
        ["sh", "-c", 'exec python3 -m http.server --directory public "$PORT"'],
        "pages in public",
    ),
    (
        {"Makefile": "CC := x\nall: dist\ndist:\n\tmkdir dist\n", "main.c": ""},
        "make",
        "make dist",
        "dist",
        ["./bin/shop"],
        "make dist builds it",
    ),
    (
        {"Dockerfile": 'FROM x\nCMD ["./serve", "--all"]\n'},
        "minimal",
        None,
        None,
        ["./serve", "--all"],
        "Dockerfile's CMD",
    ),
    ({"README": ""}, "minimal", None, None, ["./run"], "Nothing here says how the service starts"),
]


@pytest.mark.parametrize(("files", "template", "build", "output", "run", "told"), REPOSITORIES)
def test_a_repository_gets_the_file_that_suits_it(files, template, build, output, run, told):
    made, file = drafted(files)
    production = file.environments["production"]
    assert made.template == template
    assert (" ".join(file.build.command) if file.build else None) == build
    assert (file.build.output if file.build else None) == output
    assert list(production.run.command) == run
    assert any(told in sentence for sentence in made.assumed), made.assumed
    assert production.health is not None


def test_name_branch_and_port_come_from_the_repository():
    made, file = drafted(
        {"go.mod": "module x/Shop_API", "main.go": "", "Dockerfile": "EXPOSE 9000"}, branch="release/é"
    )
    assert file.service == made.service == "shop-api"
    assert file.environments["production"].branches == ("release/é",)
    assert file.environments["production"].run.port == 9000


@pytest.mark.parametrize("name", STARTS)
def test_every_template_starts_a_file_that_the_parser_takes(name):
    made = start(name, tree({}, name="My Shop", branch="trunk"))
    file = parse(made.text, "waybill.yml", DRIVERS)
    assert (file.service, file.environments["production"].branches) == ("my-shop", ("trunk",))
    assert len(made.text.splitlines()) < 20
    assert "# " in made.text


@calm
@given(st.text(max_size=60))
@example("FALSE")
@example("null")
@example("1e5")
def test_any_folder_name_becomes_a_name_that_a_service_may_have(name):
    made = start("minimal", tree({}, name=name))
    assert parse(made.text, "waybill.yml", DRIVERS).service == slug(name)


@calm
@given(
    st.dictionaries(st.sampled_from(READ), st.text(max_size=80) | st.sampled_from(["{}", "[]", "[project]\nname=1"]))
)
def test_no_text_in_a_repository_stops_the_guess(files):
    assert draft(tree(files)).text.startswith("# What runs where")


@calm
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["name", "scripts", "start", "build", "main", "dependencies"]), x)
        ),
        max_leaves=10,
    )
)
def test_no_package_json_stops_the_guess(package):
    assert draft(tree({"package.json": json.dumps(package)})).template == "node"
    assert msgspec.structs.asdict(draft(tree({"package.json": json.dumps(package)})))


def test_what_is_written_for_plain_pages_really_serves_them(tmp_path):
    """The command of the file, run as a host runs it: in the folder, with $PORT, and nothing else."""
    import socket
    import time
    import urllib.request

    (tmp_path / "index.html").write_text("<h1>hello</h1>")
    _, file = drafted({"index.html": ""})
    run = file.environments["production"].run
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PORT": str(port), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    with subprocess.Popen(run.command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
                        assert b"hello" in answer.read()
                    break
                except OSError:
                    assert time.monotonic() < deadline, "it never answered"
                    time.sleep(0.05)
        finally:
            server.terminate()
