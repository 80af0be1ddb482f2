// Signs in with a session of an identity provider, or with a token that a call has checked.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { ANSWER_MS, api, inTurn, noAnswer, read, RENEWAL_MS, type Schemas, within } from "./api";
import { now } from "./clock";
import { asFailure, repeat } from "./connection";
import { Dialog } from "./dialog";
import { Failure, FailureNote } from "./failure";
import { Source } from "./health";
import { HealthLine } from "./health_line";
import { caller, COOKIES, type Provider, provider, signIn, token } from "./session";
import { fullTime, withVisibleDirections } from "./text";

type Caller = Schemas["Caller"];

const EXPIRES_SOON_MS = 5 * 60_000;

// Whether it is known that there is no session to continue.
const isSought = signal(false);
// How the browser came to this page: `navigate`, or for example `reload`.
const [loading] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
const IN_MEMORY = "This tab keeps the token in its memory until you sign out, reload or close it.";
const FORGOTTEN =
  "You are asked because the page was loaded again: it keeps a key only in its memory. " +
  "Your password manager can keep it and fill it in.";

export function SignIn() {
  const isNew = loading?.type === "navigate";
  useEffect(() => {
    const leave = new AbortController();
    void findSession(leave.signal);
    return () => leave.abort();
  }, []);
  return (
    <main class="sign-in">
      <h1>Evershell console</h1>
      {source.failure.value && <HealthLine />}
      <ProviderButton />
      <TokenForm use={isNew ? IN_MEMORY : isSought.value ? FORGOTTEN : "Looking for your session…"} />
    </main>
  );
}

// Says that a token expires soon. A provider's session needs no note, because it is renewed.
export function ExpiryNote() {
  const [isAsking, setIsAsking] = useState(false);
  const expiry = caller.value?.expires_at;
  useEffect(() => setIsAsking(false), [expiry]);
  const leftMs = Date.parse(expiry ?? "") - now.value;
  if (token.value === COOKIES || !(leftMs < EXPIRES_SOON_MS)) return null;
  return (
    <div class="hold" role="region" aria-label="Token">
      <p>Your token expires at {fullTime(expiry ?? "")}.</p>
      <button type="button" onClick={() => setIsAsking(true)}>
        Use another token…
      </button>
      {isAsking && <SignInAgain onClose={() => setIsAsking(false)} />}
    </div>
  );
}

interface Again {
  // Why the service refuses the credential, if it does.
  failure?: Failure;
  onClose?: () => void;
}

export function SignInAgain({ failure, onClose }: Again) {
  return (
    <Dialog title="Sign in again" onClose={onClose}>
      {failure && <FailureNote failure={failure} title="You are no longer signed in." />}
      <ProviderButton />
      <TokenForm use={IN_MEMORY} />
    </Dialog>
  );
}

function ProviderButton() {
  const { sign_in } = provider.value;
  if (!sign_in) return null;
  return (
    <p>
      <button type="button" class="primary large" onClick={() => location.assign(sign_in)}>
        Sign in with your organization
      </button>
    </p>
  );
}

const source = new Source("the sign-in");

// Continues a session of the provider, if there is one. Tries again while the service does not answer.
async function findSession(signal: AbortSignal): Promise<void> {
  const found = new AbortController();
  const find = async () => {
    try {
      const answer = await get("/console/sign-in.json", ANSWER_MS, signal);
      if (answer.ok) provider.value = (await answer.json()) as Provider;
      const session = provider.value.sign_in
        ? await inTurn(signal, () => get("/v1/caller", RENEWAL_MS, signal))
        : null;
      if (session?.ok) signIn(COOKIES, withVisibleDirections((await session.json()) as Caller));
      isSought.value = true;
      found.abort();
    } catch (error) {
      throw noAnswer(error);
    }
  };
  await repeat(source, find, () => 0, AbortSignal.any([signal, found.signal]));
}

function get(path: string, milliseconds: number, signal: AbortSignal): Promise<Response> {
  return fetch(within(milliseconds, new Request(path, { signal })));
}

function TokenForm({ use }: { use: string }) {
  const [entered, setEntered] = useState("");
  const [failure, setFailure] = useState<Failure | null>(null);
  const [busy, setBusy] = useState(false);

  async function submit(event: Event) {
    event.preventDefault();
    setBusy(true);
    setFailure(null);
    try {
      const candidate = entered.trim();
      await check(candidate);
      signIn(candidate);
    } catch (error) {
      setFailure(asFailure(error));
    }
    setBusy(false);
  }

  return (
    <form onSubmit={submit}>
      {/* Lets a password manager store the token. */}
      <input type="text" autocomplete="username" value="token" readOnly hidden />
      <label for="token">API key or session token</label>
      <input
        id="token"
        type="password"
        autocomplete="current-password"
        spellcheck={false}
        required
        autofocus
        value={entered}
        onInput={(event) => setEntered(event.currentTarget.value)}
        aria-describedby="token-use"
      />
      <p id="token-use" class="fine">
        {use}
      </p>
      {failure && <FailureNote failure={failure} />}
      <button type="submit" class="primary" disabled={busy}>
        Sign in
      </button>
    </form>
  );
}

// Throws Failure if the service does not accept the token.
async function check(candidate: string): Promise<void> {
  if (!/^[\x21-\x7e]+$/.test(candidate)) {
    const message = "A token has only letters, digits and punctuation, without spaces.";
    throw new Failure("validation_error", message, "", 0);
  }
  const headers = { authorization: `Bearer ${candidate}` };
  const query = { page_size: 1 };
  await read(api.GET("/v1/workspaces", { params: { query }, headers }), "");
}
