// The memories beside the chat: what stands after # says what is shown, the server makes it, and forms change it.
const room = document.createElement("section");
room.id = "remembered";
room.hidden = true;
room.setAttribute("aria-label", "Memories");
room.innerHTML = '<p class="done" role="status"></p><p class="wrong" role="alert"></p><div class="content"></div>';
document.addEventListener("DOMContentLoaded", () => document.body.append(room));

const part = (name) => room.querySelector(`.${name}`);
let asked = 0; // answers that are not to the last question are too late
let changed = false;

function tell(done = "", wrong = "") {
  part("done").textContent = done;
  part("wrong").textContent = wrong;
}

async function detail(answer) {
  try {
    return (await answer.json()).detail || `The server answered ${answer.status}.`;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

async function load(path) {
  const number = ++asked;
  let html = null, wrong = "";
  try {
    const answer = await fetch(path, { headers: { "X-Fragment": "1" } });
    if (answer.ok) html = await answer.text();
    else wrong = await detail(answer);
  } catch {
    wrong = "The server cannot be reached. Is it running?";
  }
  if (number !== asked) return;
  if (html !== null) part("content").innerHTML = html;
  if (wrong) tell("", wrong);
  follow();
}

// An import is asked now and then how far it is.
function follow() {
  const arriving = document.getElementById("arriving");
  if (!arriving?.dataset.again) return;
  setTimeout(async () => {
    const there = document.getElementById("arriving");
    if (room.hidden || there !== arriving) return;
    const answer = await fetch("/memories/import").catch(() => null);
    if (answer?.ok && there.isConnected) {
      const stopping = there.contains(document.activeElement);
      there.outerHTML = await answer.text();
      if (stopping) (document.querySelector("#arriving button") || room.querySelector("h1"))?.focus();
      changed = true;
    }
    follow();
  }, Number(arriving.dataset.again));
}

async function show() {
  const place = location.hash.match(/^#(memories.*)$/)?.[1];
  const opening = room.hidden;
  room.hidden = !place;
  document.body.classList.toggle("remembering", !!place);
  document.querySelector("#to-memories a")?.toggleAttribute("data-here", !!place);
  if (!place) {
    asked++;
    tell();
    part("content").innerHTML = "";
    if (!opening && changed) document.dispatchEvent(new Event("memories-changed"));
    changed = false;
    return;
  }
  await load(`/${place}`);
  if (document.activeElement === document.body || opening) room.querySelector("h1")?.focus();
  room.scrollTop = 0;
  for (const open of room.querySelectorAll("details[open] textarea")) open.focus();
}

window.addEventListener("hashchange", () => {
  if (!part("done").dataset.fresh) tell();
  delete part("done").dataset.fresh;
  show();
});
document.addEventListener("DOMContentLoaded", show);

// A POST with what a form holds; a file goes as it is, with its progress.
function send(form) {
  return new Promise((answered, failed) => {
    const request = new XMLHttpRequest(), file = form.querySelector("[type=file]")?.files[0];
    request.open("POST", form.getAttribute("action"));
    request.onload = () => answered(new Response(request.responseText, { status: request.status }));
    request.onerror = failed;
    if (!file) return request.send(new URLSearchParams(new FormData(form)));
    request.setRequestHeader("X-File-Name", encodeURIComponent(file.name));
    request.upload.onprogress = (sent) => tell(`Sending ${file.name}: ${Math.floor((100 * sent.loaded) / sent.total)} %`);
    request.send(file);
  });
}

room.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, button = form.querySelector("button");
  if (form.method === "get") {
    location.hash = `memories?${new URLSearchParams(new FormData(form))}`;
    return;
  }
  const here = location.hash, action = form.getAttribute("action");
  button.disabled = true;
  tell();
  try {
    const answer = await send(form);
    if (answer.status === 401) return location.assign("/sign-in");
    if (!answer.ok) return tell("", await detail(answer));
    const { said, place } = await answer.json();
    if (place.startsWith("/")) return location.assign(place); // the account is gone
    changed = true;
    if (/\/(delete|everything)$/.test(action)) document.dispatchEvent(new Event("memories-changed")); // gone from the chat beside it, too
    if (location.hash !== here) return; // went elsewhere meanwhile
    tell(said);
    if (place && `#${place}` !== here) {
      part("done").dataset.fresh = "1";
      return location.replace(`#${place}`);
    }
    await load(`/${here.slice(1)}`);
    (room.querySelector(`form[action="${action}"] button`) || room.querySelector("h1"))?.focus();
  } catch {
    tell("", "The server cannot be reached. Nothing is known of what was sent; try again.");
  } finally {
    button.disabled = false;
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !room.hidden && !event.target.matches("input, textarea")) location.hash = "";
});
