// What Gradio leaves to do: a session that has ended leads to the door, names for the toggles, Enter on a conversation.
const ask = window.fetch;
window.fetch = async (...request) => {
  const answer = await ask(...request);
  if (answer.status === 401) location.assign("/sign-in");
  return answer;
};

const box = () => document.querySelector("#box textarea");
const narrow = matchMedia("(max-width: 1100px)");

function furnish() {
  const past = document.querySelector("#past .toggle-button");
  const memories = document.querySelector("#memories .toggle-button");
  if (!past || !memories || !box()) return false;
  for (const [toggle, name] of [[past, "Conversations"], [memories, "Memories used"]]) {
    const side = toggle.parentElement;
    let opened = false;
    const tell = () => {
      const open = side.classList.contains("open");
      toggle.setAttribute("aria-expanded", open);
      if (!open || opened) return;
      opened = true; // Gradio opens it after it is there: on a narrow screen, that once, it closes again
      if (narrow.matches) toggle.click();
      setTimeout(() => (side.dataset.met = ""), 320);
    };
    toggle.setAttribute("aria-label", name);
    new MutationObserver(tell).observe(side, { attributeFilter: ["class"] });
    tell();
  }
  // The room is filled first: what is asked for before would be overwritten by it.
  const filled = () => (document.querySelector("#who .person") ? go() : setTimeout(filled, 50));
  location.hash ? filled() : box().focus();
  return true;
}

// What stands after # may name a turn: the hidden field `place` asks for its conversation.
let times = 0;
function ask_for(turn) {
  const place = document.querySelector("#place textarea, #place input");
  if (!place) return;
  place.value = `${turn} ${++times}`; // the same turn may be wanted again
  place.dispatchEvent(new Event("input", { bubbles: true }));
  place.dispatchEvent(new KeyboardEvent("keypress", { key: "Enter", bubbles: true }));
}
function go() {
  const turn = location.hash.match(/^#turn\/(\w+)$/)?.[1];
  if (turn) ask_for(turn);
  else if (!location.hash) setTimeout(() => box()?.focus(), 0);
}
window.addEventListener("hashchange", go);
document.addEventListener("memories-changed", () => document.querySelector(".stop-button") || ask_for(""));

// The answer's panel says which turn was looked for; it is brought into sight, also while the chat still scrolls to its end.
let shown = null;
function bring() {
  const found = document.querySelector("#recalled [data-found]");
  if (!found || found === shown) return;
  shown = found;
  const until = Date.now() + 1200;
  const step = () => {
    const row = document.querySelectorAll("#said .user-row")[Number(found.dataset.found)];
    row?.scrollIntoView({ block: "start" });
    row?.classList.add("found");
    if (Date.now() < until && found.isConnected) setTimeout(step, 100);
  };
  step();
}
new MutationObserver(bring).observe(document, { childList: true, subtree: true });

// What each answer took waits in a hidden place, and is put under its answer.
function tell_costs() {
  const costs = new Map([...document.querySelectorAll("#costs .cost")].map((cost) => [Number(cost.dataset.place), cost.outerHTML]));
  document.querySelectorAll("#said .bot-row").forEach((row, n) => {
    const cost = costs.get(n) ?? "";
    let place = row.querySelector(":scope > .cost-place");
    if (!place && cost) row.append((place = Object.assign(document.createElement("div"), { className: "cost-place" })));
    if (place && place.told !== cost) place.innerHTML = place.told = cost;
  });
}
let costs_due = 0;
new MutationObserver(() => (costs_due ||= requestAnimationFrame(() => ((costs_due = 0), tell_costs())))).observe(document, { childList: true, subtree: true });

const watch = new MutationObserver(() => furnish() && watch.disconnect());
watch.observe(document, { childList: true, subtree: true });

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches?.("#list input")) event.target.click();
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#turn/']");
  if (link && link.hash === location.hash) go(); // no change of the address tells it
  if (event.target.closest("#new, #list label") && location.hash) location.hash = "";
  if (narrow.matches && event.target.closest("#recalled a, #recalled-title a")) document.querySelector("#memories.open .toggle-button")?.click();
  if (event.target.closest("#new, .submit-button, .stop-button")) setTimeout(() => box()?.focus(), 0);
  if (narrow.matches && event.target.closest("#new, #list label, #to-memories a")) document.querySelector("#past.open .toggle-button")?.click();
});
