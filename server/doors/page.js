"use strict";
const EVERY = 2000;
const said = document.getElementById("said");
for (const each of document.querySelectorAll("[data-live]")) each.dataset.live = each.outerHTML;
let shown = document.documentElement.dataset.digest;

function say(text) {
  if (said.textContent !== text) said.textContent = text;
}

function replaced(old, fresh) {
  const open = new Set([...old.querySelectorAll("details[open]")].map((each) => each.id));
  const scrolled = new Map([...old.querySelectorAll(".scroll")].map((each) => [each.id, each.scrollLeft]));
  const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
  old.replaceWith(fresh);
  for (const each of fresh.querySelectorAll("details")) each.open = open.has(each.id);
  for (const each of fresh.querySelectorAll(".scroll")) each.scrollLeft = scrolled.get(each.id) || 0;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function refresh(status) {
  const answer = await fetch("/", { cache: "no-store" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh && fresh.outerHTML !== old.dataset.live) {
      const source = fresh.outerHTML;
      const adopted = document.importNode(fresh, true);
      replaced(old, adopted);
      adopted.dataset.live = source;
    }
  }
  document.title = page.title;
  shown = status.digest;
}

async function look() {
  try {
    const status = await (await fetch("/status.json", { cache: "no-store" })).json();
    if (status.digest !== shown) await refresh(status);
    say(status.said);
    const time = document.getElementById("time");
    time.textContent = time.dateTime = status.time;
  } catch {
    say("No answer: is fedfree-server status --serve still running? What stands below is old.");
  }
  setTimeout(look, EVERY);
}

setTimeout(look, EVERY);
