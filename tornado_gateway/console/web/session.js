// The session: signing in and out, and the state in the head of the page.

import { ask, byId, post } from "./dom.js";

const RETRY_MS = 3000; // after a failed request, before the session is checked again

let retry = 0;
let onSignedIn = null;
let onSignedOut = null;

/** Call these when a session starts and ends. */
export function watchSession(signedIn, signedOut) {
  onSignedIn = signedIn;
  onSignedOut = signedOut;
  byId("sign-in-form").addEventListener("submit", signInWithForm);
  byId("sign-out").addEventListener("click", signOut);
}

export function setState(tone, text) {
  byId("state").className = `state ${tone}`;
  const element = byId("state-text");
  if (element.textContent === text) return;
  element.textContent = element.title = text; // the title, because a long text is cut off
}

/** Show the console if there is a session, else the form. */
export async function enter() {
  clearTimeout(retry);
  let isSignedIn = true;
  try {
    await ask("/admin/session");
  } catch (error) {
    if (error.status !== 401) {
      setState("bad", error.message);
      retry = setTimeout(enter, RETRY_MS);
      return;
    }
    isSignedIn = false;
  }
  byId("sign-in").hidden = isSignedIn;
  document.querySelector(".tabs").hidden = !isSignedIn;
  byId("sign-out").hidden = !isSignedIn;
  if (isSignedIn) {
    onSignedIn();
    return;
  }
  onSignedOut();
  setState("warn", "signed out");
  byId("token").focus();
}

async function signIn(token) {
  await post("/admin/session", { token });
  byId("sign-in-problem").textContent = "";
  await enter();
}

async function signInWithForm(event) {
  event.preventDefault();
  const field = byId("token");
  try {
    await signIn(field.value);
    field.value = "";
    document.querySelector(".tabs [aria-selected=true]")?.focus();
  } catch (error) {
    byId("sign-in-problem").textContent = error.message;
    field.select();
  }
}

/** The token of a link from `tornado-gateway console-url`. It leaves the address bar before anything else happens. */
function takeTokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) history.replaceState(null, "", location.pathname + location.search);
  return token;
}

/** Sign in with the token of the address if there is one, else with the session. */
export async function startSession() {
  const token = takeTokenFromAddress();
  if (token === null) return enter();
  try {
    await signIn(token);
  } catch (error) {
    byId("sign-in-problem").textContent = `The link did not sign in: ${error.message}`;
    await enter();
  }
}

async function signOut() {
  await post("/admin/session", {}, "DELETE");
  await enter();
}
