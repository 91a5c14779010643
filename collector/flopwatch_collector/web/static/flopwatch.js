"use strict";
// The server draws every state of this page; here only what changed is put in its place.
(() => {
  document.documentElement.classList.add("js");
  const byId = (id) => document.getElementById(id);
  const STALE_S = 30;
  const LAST_KNOWN_S = 300;

  const words = (seconds) =>
    seconds < 120 ? `${Math.max(0, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;

  function tick() {
    const live = byId("live");
    if (!live || !live.dataset.asOf) return;
    const moment = new Date(live.dataset.asOf);
    const age = (Date.now() - moment) / 1000;
    const late = age > STALE_S;
    live.classList.toggle("late", late);
    byId("main").classList.toggle("stale", late);
    const text =
      age > LAST_KNOWN_S
        ? `last known at ${live.dataset.asOf.slice(11, 16)} UTC`
        : late
          ? `${words(age)} old`
          : `live ${words(age)}`;
    live.querySelector(".age").textContent = text;
    live.title = `${live.dataset.asOf} · ${moment.toLocaleString()}`;
  }

  function place(fresh) {
    document.title = fresh.title;
    const ids = (of) => [...of.querySelectorAll("[data-live]")].map((part) => part.id).join();
    if (ids(document) !== ids(fresh)) {
      // Another page altogether: the first cluster came, or the last one went.
      document.body.innerHTML = fresh.body.innerHTML;
    }
    for (const now of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(now.id);
      if (now.className !== next.className) now.setAttribute("class", next.className);
      if (now.innerHTML !== next.innerHTML) now.innerHTML = next.innerHTML;
    }
    tick();
  }

  let asking = false;
  async function refresh() {
    if (asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok) place(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The age says it: nothing here is newer than what stands.
    } finally {
      asking = false;
    }
  }

  const main = byId("main");
  if (main && main.dataset.window) {
    const stream = new EventSource(`/api/v1/stream?window=${encodeURIComponent(main.dataset.window)}`);
    let first = true;
    stream.addEventListener("fleet", () => {
      // The page was drawn from the same answer that a new stream begins with.
      if (!first) refresh();
      first = false;
    });
    stream.addEventListener("busy", refresh);
    stream.addEventListener("error", refresh);
    document.addEventListener("visibilitychange", refresh);
    setInterval(tick, 1000);
    tick();
  }

  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    const cell = event.target.closest(".cell");
    if (cell) {
      const cluster = cell.closest("[data-cluster]").dataset.cluster;
      location.href = `/nodes/${encodeURIComponent(cell.dataset.node)}?cluster=${encodeURIComponent(cluster)}`;
    }
  });
  document.addEventListener("keydown", (event) => {
    const find = byId("find");
    if (event.key === "/" && find && document.activeElement !== find) {
      event.preventDefault();
      find.focus();
    } else if (event.key === "Enter" && document.activeElement === find && find.value.trim()) {
      location.href = `/nodes/${encodeURIComponent(find.value.trim())}`;
    } else if (event.key === "Escape") {
      for (const menu of document.querySelectorAll(".menu[open]")) menu.open = false;
    }
  });
})();
