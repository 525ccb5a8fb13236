// While a run is at work, the list of runs is asked for again and again; when none is any more, the whole page is: there may be a verdict.
function follow() {
  const runs = document.querySelector("#runs[data-again]");
  if (!runs) return;
  setTimeout(async () => {
    const answer = document.hidden ? null : await fetch(location.href, { headers: { "X-Fragment": "1" } }).catch(() => null);
    if (answer && [401, 403].includes(answer.status)) return location.reload();
    if (answer?.ok) {
      const html = await answer.text().catch(() => "");
      if (!html) return follow();
      const focused = runs.contains(document.activeElement) && document.activeElement.getAttribute("href");
      runs.outerHTML = html;
      if (!document.querySelector("#runs[data-again]")) return location.reload();
      if (focused) document.querySelector(`#runs a[href="${focused}"]`)?.focus({ preventScroll: true });
    }
    follow();
  }, Number(runs.dataset.again));
}
follow();
