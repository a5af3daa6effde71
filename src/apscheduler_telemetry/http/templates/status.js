"use strict";
const SECONDS = 15;
const option = document.getElementById("refresh");
const problem = document.getElementById("problem");
let ahead = 0;
const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
function span(seconds) {
  const rest = Math.floor(seconds);
  const first = units.findIndex(([size]) => rest >= size);
  if (first < 0) return "0 s";
  const [size, unit] = units[first];
  const [smaller, smallerUnit] = units[first + 1] ?? [size, ""];
  const count = Math.floor((rest % size) / smaller);
  return `${Math.floor(rest / size)} ${unit}` + (count ? ` ${count} ${smallerUnit}` : "");
}
function synchronize() {
  ahead = Date.now() / 1000 - document.querySelector("main").dataset.now;
}
function count() {
  const now = Date.now() / 1000 - ahead;
  for (const shown of document.querySelectorAll("[data-at]")) {
    const left = shown.dataset.at - now;
    shown.textContent = left >= 0 ? `in ${span(left)}` : `${span(-left)} late`;
  }
}
async function refresh() {
  if (document.hidden || !option.firstElementChild.checked || !getSelection().isCollapsed) return;
  try {
    const response = await fetch(location.href, {cache: "no-store"});
    if (!response.ok && response.status !== 404) throw new Error(response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const before = document.querySelector("main");
    const after = document.adoptNode(page.querySelector("main"));
    const opened = [...before.querySelectorAll("details")].map((each) => each.open);
    after.querySelectorAll("details").forEach((each, number) => { each.open = opened[number] ?? false; });
    const focused = document.activeElement?.href;
    const top = scrollY;
    before.replaceWith(after);
    scrollTo(0, top);
    document.title = page.title;
    problem.textContent = "";
    synchronize();
    if (focused) [...document.links].find((link) => link.href === focused)?.focus({preventScroll: true});
  } catch {
    problem.textContent ||= `Not refreshed since ${new Date().toLocaleTimeString()}: the process does not answer.`;
  }
}
synchronize();
option.hidden = false;
setInterval(count, 1000);
setInterval(refresh, SECONDS * 1000);
