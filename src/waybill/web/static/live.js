// Keeps the page as the server sees it. The server sends whole fragments when they change; this patches them in, so that
// focus, open details and what was typed stay. Without it the page reads just as well and is reloaded by hand.
"use strict";
(() => {
  const root = document.getElementById("fragments");
  const connection = document.getElementById("connection");
  const said = connection.querySelector("span");
  let version = root.dataset.version;
  let ahead = Date.parse(root.dataset.now) - Date.now(); // the server's clock, not ours, says how old things are
  let source = null;
  let failures = 0;
  let timer = 0;

  const say = (text, live) => {
    if (said.textContent !== text) said.textContent = text;
    connection.classList.toggle("live", live);
  };

  const age = (seconds) => {
    if (seconds < 5) return "just now";
    if (seconds < 60) return `${Math.floor(seconds)} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
    return `${Math.floor(seconds / 86400)} days ago`;
  };

  const ages = () => {
    for (const span of root.querySelectorAll(".age")) {
      const time = span.previousElementSibling;
      if (!time || time.tagName !== "TIME") continue;
      const text = age((Date.now() + ahead - Date.parse(time.dateTime)) / 1000);
      if (span.textContent !== text) span.textContent = text;
    }
  };

  const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && one.id === other.id;

  const patch = (old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes])
      if (!fresh.hasAttribute(name) && !(name === "open" && old.tagName === "DETAILS")) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const keyed = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
    let at = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      const known = child.id ? keyed.get(child.id) : at && !at.id && alike(at, child) ? at : null;
      if (known && alike(known, child)) {
        if (known === at) at = at.nextSibling;
        else old.insertBefore(known, at);
        patch(known, child);
      } else {
        old.insertBefore(child, at);
        if (child.classList && child.id) child.classList.add("fresh");
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  const show = (event) => {
    const { now, fragments } = JSON.parse(event.data);
    version = event.lastEventId;
    ahead = Date.parse(now) - Date.now();
    for (const [id, html] of Object.entries(fragments)) {
      const fresh = new DOMParser().parseFromString(html, "text/html").getElementById(id);
      const old = document.getElementById(id);
      if (fresh && old) patch(old, fresh);
    }
    ages();
  };

  const open = () => {
    clearTimeout(timer);
    if (source || document.hidden) return;
    source = new EventSource(`${root.dataset.live}&version=${encodeURIComponent(version)}`);
    source.addEventListener("open", () => {
      failures = 0;
      say("Live: changes appear by themselves.", true);
    });
    source.addEventListener("fragments", show);
    source.addEventListener("bye", () => location.reload());
    source.addEventListener("error", () => {
      close();
      failures += 1;
      const pause = Math.min(30, 2 ** failures / 2) * (0.7 + 0.6 * Math.random());
      say("Not connected; what you see may be old. Trying again.", false);
      timer = setTimeout(failures % 3 ? open : check, pause * 1000);
    });
  };

  // A stream says not why it was refused: perhaps the session is over, and then the log-in page is what is needed.
  const check = async () => {
    try {
      const answer = await fetch(location.href, { redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect") return location.reload();
    } catch {
      // Not reachable: the next attempt says so again.
    }
    open();
  };

  const close = () => {
    if (source) source.close();
    source = null;
  };

  // A hidden tab needs no stream; browsers allow six connections to a server over HTTP/1.1.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
      close();
    } else open();
  });
  addEventListener("pagehide", close);
  setInterval(ages, 5000);
  open();
})();
