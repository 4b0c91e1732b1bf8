'use strict';
// Replaces the state every 5 seconds while the page is visible.
const state = document.getElementById('state');
const live = document.getElementById('live');
const stale = document.getElementById('stale');
document.getElementById('live-label').hidden = false;

// `fetch` rejects a URL that contains a password.
const address = new URL(location.href);
address.username = address.password = '';

async function refresh() {
  if (!live.checked || document.hidden || state.contains(document.activeElement)) return;
  if (!document.getSelection().isCollapsed) return;
  try {
    const answer = await fetch(address, { cache: 'no-store', redirect: 'error' });
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    const fresh = page.getElementById('state');
    if (!fresh) throw new Error(`the process answered ${answer.status}`);
    state.replaceChildren(...fresh.childNodes);
    stale.hidden = true;
  } catch (error) {
    stale.textContent = `Not refreshed: ${error.message}. The data below is out of date.`;
    stale.hidden = false;
  }
}

async function repeat() {
  await refresh();
  setTimeout(repeat, 5000);
}

setTimeout(repeat, 5000);
