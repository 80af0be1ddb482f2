// Signs in with a session of an identity provider, or with a token that a call has checked.
import { useEffect, useState } from "preact/hooks";
import { api, inTurn, noAnswer, read, type Schemas } from "./api";
import { now } from "./clock";
import { asFailure, backoffMs, pause, trouble } from "./connection";
import { ConnectionNote } from "./connection_note";
import { Dialog } from "./dialog";
import { Failure, FailureNote } from "./failure";
import { caller, COOKIES, type Provider, provider, signIn, token } from "./session";
import { fullTime, withVisibleDirections } from "./text";

type Caller = Schemas["Caller"];

const EXPIRES_SOON_MS = 5 * 60_000;

export function SignIn() {
  useEffect(() => {
    const leave = new AbortController();
    void findSession(leave.signal);
    return () => leave.abort();
  }, []);
  return (
    <main class="sign-in">
      <h1>Evershell console</h1>
      <ConnectionNote />
      <ProviderButton />
      <TokenForm />
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
      <TokenForm />
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

// Continues a session of the provider, if there is one. Tries again while the service does not answer.
async function findSession(signal: AbortSignal): Promise<void> {
  for (let failures = 1; !signal.aborted; failures += 1) {
    try {
      const answer = await fetch("/console/sign-in.json", { signal });
      if (answer.ok) provider.value = (await answer.json()) as Provider;
      const session = provider.value.sign_in
        ? await inTurn(signal, () => fetch("/v1/caller", { signal }))
        : null;
      trouble.value = null;
      if (session?.ok) signIn(COOKIES, withVisibleDirections((await session.json()) as Caller));
      return;
    } catch (error) {
      if (signal.aborted) return;
      trouble.value = asFailure(noAnswer(error));
    }
    await pause(backoffMs(failures, trouble.peek()), signal);
  }
}

function TokenForm() {
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
        This tab keeps the token in its memory until you sign out, reload or close it.
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
