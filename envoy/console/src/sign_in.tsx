// Asks for a token, and checks it with a call before it is used.
import { useState } from "preact/hooks";
import { api, read } from "./api";
import { asFailure } from "./connection";
import { Dialog } from "./dialog";
import { Failure, FailureNote } from "./failure";
import { signIn } from "./session";

export function SignIn() {
  return (
    <main class="sign-in">
      <h1>Evershell console</h1>
      <TokenForm />
    </main>
  );
}

export function SignInAgain({ failure }: { failure: Failure }) {
  return (
    <Dialog title="Sign in again">
      <FailureNote failure={failure} title="The service no longer accepts your token." />
      <TokenForm />
    </Dialog>
  );
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
