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
  box().focus();
  return true;
}

const watch = new MutationObserver(() => furnish() && watch.disconnect());
watch.observe(document, { childList: true, subtree: true });

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches?.("#list input")) event.target.click();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#new, .submit-button, .stop-button")) setTimeout(() => box()?.focus(), 0);
  if (narrow.matches && event.target.closest("#new, #list label")) document.querySelector("#past.open .toggle-button")?.click();
});
