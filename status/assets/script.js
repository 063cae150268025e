// Keeps the page fresh: fetches its live part once a heartbeat, and says so when it cannot.
"use strict";

(() => {
  const live = document.getElementById("live");
  const link = document.getElementById("link");
  const spoken = document.getElementById("spoken");
  const period = Math.max(1, Number(live.dataset.seconds)) * 1000;
  let seen = performance.now();
  let trouble = "";
  let missed = 0;
  let ended = false;
  let timer = 0;
  let verdict = document.getElementById("headline").textContent;

  // What was done once is done, and what was refused too: a reload shows the page, and does nothing again.
  const home = live.dataset.url.replace(/\/live$/, "");
  if (location.search || location.pathname !== home) history.replaceState(null, "", home);

  function age() {
    const seconds = Math.max(0, Math.round((performance.now() - seen) / 1000));
    return seconds < 120 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  }

  function tell() {
    const old = trouble !== "" || performance.now() - seen > 2 * period + 2000;
    document.body.classList.toggle("stale", old);
    const why = trouble || "Disconnected: no answer yet.";
    const text = old ? `! ${why} What you see is ${age()} old.` : `✓ Connected, updated ${age()} ago`;
    if (link.textContent !== text) link.textContent = text;
  }

  function show(fragment) {
    const open = [...live.querySelectorAll("details[open]")].map((one) => one.id);
    const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
    live.innerHTML = fragment;
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    const headline = document.getElementById("headline");
    document.title = headline.dataset.title;
    if (headline.textContent !== verdict) {
      verdict = headline.textContent;
      spoken.textContent = verdict;
    }
  }

  async function renew() {
    clearTimeout(timer);
    let wait = period;
    try {
      const answer = await fetch(live.dataset.url, {
        cache: "no-store",
        redirect: "manual",
        signal: AbortSignal.timeout(Math.max(period, 5000)),
      });
      if (answer.ok) {
        const fragment = await answer.text();
        // A finger on a button: it must not vanish under it.
        if (!live.querySelector("button:active, summary:active")) show(fragment);
        seen = performance.now();
        trouble = "";
        missed = 0;
      } else if (answer.status === 503) {
        // Another worker may know the token. The server drops an idle connection after two seconds, and a new one may
        // reach that worker.
        missed += 1;
        if (missed > 2) trouble = "Disconnected: the database does not answer, and no worker asked knows your token.";
        wait = 2500;
      } else {
        // Asking again would only make the browser ask for a password, again and again.
        trouble = "Disconnected: your token is not taken any more. Reload the page.";
        ended = true;
      }
    } catch {
      trouble = "Disconnected: the replica does not answer.";
      wait = Math.min(period, 2000);
    }
    tell();
    if (!ended) timer = setTimeout(renew, wait);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !ended && performance.now() - seen > period) renew();
  });
  setInterval(tell, 1000);
  tell();
  timer = setTimeout(renew, period);
})();
