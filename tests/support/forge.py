"""A forge that keeps issues, strict and with a state, in the dialects of GitLab, GitHub and Gitea: a real process.

``python -m support.forge`` prints its port. It asserts what the real ones demand and refuses what they refuse. Under
``/__`` a test says what goes wrong (before or after the effect, 429), how late lists are, and what people do.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "token-of-the-tests"
PROJECT = "team/app"
PAGE = 7  # small, so that every list has pages


class Refusal(Exception):  # noqa: N818 - what the forge answers, not a fault of ours
    def __init__(self, status, said, headers=()):
        super().__init__(said)
        self.status, self.headers = status, dict(headers)


class Forge:
    """The issues of one project."""

    def __init__(self):
        self.lock = threading.RLock()
        self.issues = {}
        self.labels = {}
        self.comments = 0
        self.faults = []
        self.lag = 0.0
        self.log = []

    def now(self):
        return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def create(self, title, body, labels):
        if not title or len(title) > 255:
            raise Refusal(400, "title is missing or too long")
        if len(body) > 65536:
            raise Refusal(422, "body is too long")
        number = len(self.issues) + 1
        self.issues[number] = {
            "number": number, "title": title, "body": body, "labels": list(labels), "open": True, "closed": None,
            "created": time.monotonic(), "comments": [], "duplicate_of": None,
        }  # fmt: skip
        return self.issues[number]

    def issue(self, number):
        found = self.issues.get(int(number))
        if found is None:
            raise Refusal(404, "404 Not found")
        return found

    def comment(self, issue, body, insider=True, system=False):
        if not body.strip():
            raise Refusal(400, "body is empty")
        self.comments += 1
        made = {"id": 1000 + self.comments, "body": body, "insider": insider, "system": system}
        issue["comments"].append(made)
        return made

    def set_open(self, issue, wanted):
        if issue["open"] != wanted:
            issue["open"] = wanted
            issue["closed"] = None if wanted else self.now()

    def listed(self, label):
        limit = time.monotonic() - self.lag
        found = [issue for issue in self.issues.values() if label in issue["labels"] and issue["created"] <= limit]
        return found[::-1]  # newest first, as all of them do


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    forge: Forge

    def log_message(self, *_):
        pass

    def handle_any(self):
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        parts = urlsplit(self.path)
        path, query = parts.path, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        with self.forge.lock:
            try:
                body = json.loads(raw) if raw else None
                if path.startswith("/__"):
                    return self.answer(200, self.control(path, body))
                self.forge.log.append(f"{self.command} {path}")
                how = self.fault(f"{self.command} {path}")
                if how == "before":
                    self.close_connection = True
                    self.connection.close()
                    return None
                told = self.route(self.command, path, query, body)
                if how == "after":
                    self.close_connection = True
                    self.connection.close()
                    return None
                hang = how == "hang"  # done, and not answered: whoever asked can be killed now
                if not hang:
                    return self.answer(*told)
            except Refusal as refusal:
                return self.answer(refusal.status, {"message": str(refusal)}, refusal.headers)
        time.sleep(5)
        return None

    do_GET = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815 - names of http.server

    def fault(self, what):
        for fault in self.forge.faults:
            if fault["times"] > 0 and re.search(fault["what"], what):
                fault["times"] -= 1
                if fault["how"] in ("before", "after", "hang"):
                    return fault["how"]
                raise Refusal(int(fault["how"]), "Retry later", fault.get("headers", {}))
        return ""

    def answer(self, status, told, headers=None):
        content = b"" if told is None else json.dumps(told).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def page(self, items, query, form, size_name):
        size = min(int(query.get(size_name, 20)), PAGE)
        number = int(query.get("page", 1))
        shown = items[(number - 1) * size : number * size]
        headers = {}
        if number * size < len(items):
            parts = urlsplit(self.path)
            given = "&".join(f"{k}={v}" for k, v in parse_qsl(parts.query) if k != "page").replace(" ", "+")
            host = self.headers["host"]
            headers["link"] = f'<http://{host}{parts.path}?{given}&page={number + 1}>; rel="next"'
        return 200, [form(item) for item in shown], headers

    def control(self, path, body):
        forge = self.forge
        if path == "/__fault":
            forge.faults.append({"times": 1} | body)
        elif path == "/__calm":
            forge.faults.clear()
        elif path == "/__lag":
            forge.lag = body["seconds"]
        elif path == "/__person":
            issue = forge.issue(body["issue"])
            if "comment" in body:
                forge.comment(issue, body["comment"], body.get("insider", True))
            if "open" in body:
                forge.set_open(issue, body["open"])
            if "duplicate_of" in body:  # GitLab's /duplicate
                issue["duplicate_of"] = body["duplicate_of"]
                forge.comment(issue, f"marked this issue as a duplicate of #{body['duplicate_of']}", system=True)
                forge.set_open(issue, wanted=False)
            if "labels" in body:
                issue["labels"] = body["labels"]
        elif path == "/__reset":
            forge.__init__()
        return {"issues": list(forge.issues.values()), "log": forge.log}

    def route(self, method, path, query, body):
        if path.startswith("/api/v4/"):
            return self.gitlab(method, path.removeprefix("/api/v4"), query, body)
        if path.startswith("/api/v1/"):
            return self.gitea(method, path.removeprefix("/api/v1"), query, body)
        return self.github(method, path, query, body)

    def need(self, given, *allowed):
        if wrong := set(given or {}) - set(allowed):
            raise Refusal(400, f"unknown fields: {sorted(wrong)}")

    # GitLab

    def gitlab(self, method, path, query, body):
        forge = self.forge
        if self.headers.get("private-token") != TOKEN:
            raise Refusal(401, "401 Unauthorized")
        match = re.fullmatch(r"/projects/([^/]+)/issues(?:/(\d+))?(/notes)?(?:/(\d+))?", path)
        if match is None or unquote(match[1]) != PROJECT or "/" in match[1]:
            raise Refusal(404, "404 Project Not Found")
        _, number, notes, note = match.groups()
        match method, number, notes, note:
            case "GET", None, None, None:
                self.need(query, "labels", "state", "scope", "per_page", "page")
                if query.get("scope") != "all" or query.get("state") != "all":
                    raise Refusal(400, "only a list of all is asked for here")
                return self.page(forge.listed(query["labels"]), query, self.gitlab_issue, "per_page")
            case "POST", None, None, None:
                self.need(body, "title", "description", "labels")
                made = forge.create(body["title"], body["description"], body["labels"].split(","))
                return 201, self.gitlab_issue(made)
            case "GET", _, None, None:
                return 200, self.gitlab_issue(forge.issue(number))
            case "PUT", _, None, None:
                self.need(body, "state_event", "description", "add_labels")
                issue = forge.issue(number)
                issue["body"] = body.get("description", issue["body"])
                if label := body.get("add_labels"):
                    issue["labels"] = sorted({*issue["labels"], label})
                if event := body.get("state_event"):
                    forge.set_open(issue, {"reopen": True, "close": False}[event])
                    issue["duplicate_of"] = issue["duplicate_of"] if event == "close" else None
                return 200, self.gitlab_issue(issue)
            case "GET", _, "/notes", None:
                self.need(query, "sort", "order_by", "per_page", "page")
                return self.page(forge.issue(number)["comments"], query, self.gitlab_note, "per_page")
            case "POST", _, "/notes", None:
                self.need(body, "body")
                return 201, self.gitlab_note(forge.comment(forge.issue(number), body["body"]))
            case "PUT", _, "/notes", _:
                self.need(body, "body")
                return 200, self.gitlab_note(self.change(forge.issue(number)["comments"], note, body["body"]))
        raise Refusal(405, "405 Method Not Allowed")

    def change(self, comments, identity, body):
        for comment in comments:
            if comment["id"] == int(identity) and not comment["system"]:
                comment["body"] = body
                return comment
        raise Refusal(404, "404 Note Not Found")

    def gitlab_issue(self, issue):
        links = {"self": f"http://x/api/v4/projects/3/issues/{issue['number']}", "closed_as_duplicate_of": None}
        if issue["duplicate_of"]:
            links["closed_as_duplicate_of"] = f"http://x/api/v4/projects/3/issues/{issue['duplicate_of']}"
        return {
            "id": 5000 + issue["number"], "iid": issue["number"], "project_id": 3, "title": issue["title"],
            "description": issue["body"], "state": "opened" if issue["open"] else "closed", "labels": issue["labels"],
            "closed_at": issue["closed"], "web_url": f"http://x/{PROJECT}/-/issues/{issue['number']}", "_links": links,
        }  # fmt: skip

    def gitlab_note(self, comment):
        return {"id": comment["id"], "body": comment["body"], "system": comment["system"]}

    # GitHub and Gitea

    def github(self, method, path, query, body):
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Bad credentials")
        if not self.headers.get("user-agent") or not self.headers.get("x-github-api-version"):
            raise Refusal(403, "Request forbidden by administrative rules.")
        return self.common(method, path, query, body, by_number=False)

    def gitea(self, method, path, query, body):
        if self.headers.get("authorization") != f"token {TOKEN}":
            raise Refusal(401, "token is required")
        return self.common(method, path, query, body, by_number=True)

    def common(self, method, path, query, body, by_number):
        forge = self.forge
        if not path.startswith(f"/repos/{PROJECT}/"):
            raise Refusal(404, "Not Found")
        rest = path.removeprefix(f"/repos/{PROJECT}")
        size = "limit" if by_number else "per_page"
        if rest == "/labels" and by_number:
            if method == "GET":
                found = [{"id": number, "name": name} for name, number in forge.labels.items()]
                return self.page(found, query, dict, size)
            forge.labels[body["name"]] = len(forge.labels) + 71
            return 201, {"id": forge.labels[body["name"]], "name": body["name"]}
        if match := re.fullmatch(r"/issues/comments/(\d+)", rest):
            every = [comment for issue in forge.issues.values() for comment in issue["comments"]]
            return 200, self.comment_form(self.change(every, match[1], body["body"]))
        match = re.fullmatch(r"/issues(?:/(\d+))?(/comments|/labels)?", rest)
        if match is None:
            raise Refusal(404, "Not Found")
        number, what = match.groups()
        match method, number, what:
            case "GET", None, None:
                self.need(query, "labels", "state", "page", size, *(["type"] if by_number else []))
                if query.get("state") != "all":
                    raise Refusal(400, "only a list of all is asked for here")
                if by_number and query["labels"] not in forge.labels:
                    return self.page(list(forge.issues.values()), query, self.form, size)
                found = [*forge.listed(query["labels"]), *([] if by_number else [{"pull": True}])]
                return self.page(found, query, self.form, size)
            case "POST", None, None:
                self.need(body, "title", "body", "labels")
                made = forge.create(body["title"], body["body"], self.names(body["labels"], by_number))
                return 201, self.form(made)
            case "GET", _, None:
                return 200, self.form(forge.issue(number))
            case "PATCH", _, None:
                self.need(body, "state", "body")
                issue = forge.issue(number)
                issue["body"] = body.get("body", issue["body"])
                if state := body.get("state"):
                    forge.set_open(issue, {"open": True, "closed": False}[state])
                return 200, self.form(issue)
            case "GET", _, "/comments":
                if by_number:
                    return 200, [self.comment_form(comment) for comment in forge.issue(number)["comments"]]
                return self.page(forge.issue(number)["comments"], query, self.comment_form, size)
            case "POST", _, "/comments":
                self.need(body, "body")
                return 201, self.comment_form(forge.comment(forge.issue(number), body["body"]))
            case "POST", _, "/labels":
                issue = forge.issue(number)
                issue["labels"] = sorted({*issue["labels"], *self.names(body["labels"], by_number)})
                return 200, []
        raise Refusal(405, "Method Not Allowed")

    def names(self, labels, by_number):
        if not by_number:
            if not all(isinstance(label, str) for label in labels):
                raise Refusal(422, "labels are names")
            return labels
        known = {number: name for name, number in self.forge.labels.items()}
        if not all(label in known for label in labels):
            raise Refusal(422, "labels are numbers of labels that exist")
        return [known[label] for label in labels]

    def form(self, issue):
        if issue.get("pull"):
            return {"number": 999, "title": "a pull request", "body": "", "state": "open", "pull_request": {"url": "x"}}
        return {
            "id": 5000 + issue["number"], "number": issue["number"], "title": issue["title"], "body": issue["body"],
            "state": "open" if issue["open"] else "closed", "closed_at": issue["closed"],
            "html_url": f"http://x/{PROJECT}/issues/{issue['number']}", "labels": [{"name": n} for n in issue["labels"]],
        }  # fmt: skip

    def comment_form(self, comment):
        association = "OWNER" if comment["insider"] else "NONE"
        return {"id": comment["id"], "body": comment["body"], "author_association": association}


def main():
    forge = Forge()
    handler = type("Bound", (Handler,), {"forge": forge})
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
