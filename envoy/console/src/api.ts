// Calls to the REST interface, with types from the OpenAPI document.
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "../openapi";
import { hear, serverNow } from "./clock";
import { Failure, NO_CONNECTION } from "./failure";
import { noteAnswer } from "./health";
import { caller, COOKIES, credentials, rejectToken, token } from "./session";
import { withVisibleDirections } from "./text";

export type Schemas = components["schemas"];
export type Workspace = Schemas["Workspace"];
export type Task = Schemas["Task"];
export type WorkspaceEvent = Schemas["Event"];

// The clocks of the provider, of Envoy and of this page may differ by this much.
const CLOCKS_DIFFER_MS = 5_000;
// A call without an answer is given up after this time.
export const ANSWER_MS = 5_000;
// A renewal of the session has more time, because the provider may use up 5 s, and the session could
// be lost with the answer.
export const RENEWAL_MS = 10_000;

const authorize: Middleware = {
  onRequest({ request }) {
    if (!request.headers.has("authorization")) {
      for (const [name, value] of Object.entries(credentials(token.peek()))) {
        request.headers.set(name, value);
      }
    }
    return request;
  },
  onResponse({ response }) {
    hear(response.headers.get("date"));
  },
};

export const api = createClient<paths>({
  baseUrl: location.origin,
  credentials: "same-origin",
  fetch: (request) => fetchInTurn(within(ANSWER_MS, request)),
});
api.use(authorize);

// The request, which is given up after this time.
export function within(milliseconds: number, request: Request): Request {
  const signal = AbortSignal.any([request.signal, AbortSignal.timeout(milliseconds)]);
  return new Request(request, { signal });
}

// When the access token of a session has expired, Envoy renews the session with the next call.
// Parallel calls would use the refresh token more than once, and the provider might then revoke the
// session. So the calls of all tabs are made one after another, from shortly before the expiry
// until a call has renewed the session.
export async function fetchInTurn(request: Request): Promise<Response> {
  if (!isExpiring()) return fetch(request);
  return inTurn(request.signal, async () => {
    if (isExpiring()) await renew();
    return fetch(request);
  });
}

async function renew(): Promise<void> {
  const init = { fetch: (request: Request) => fetch(within(RENEWAL_MS, request)) };
  caller.value = await read(api.GET("/v1/caller", init));
}

// Makes a call that may renew the session. Only one tab makes such a call at a time.
export async function inTurn<T>(signal: AbortSignal, call: () => Promise<T>): Promise<T> {
  return navigator.locks.request("evershell-session", { signal }, call);
}

function isExpiring(): boolean {
  const expiry = Date.parse(caller.peek()?.expires_at ?? "");
  return token.peek() === COOKIES && serverNow() > expiry - CLOCKS_DIFFER_MS;
}

// The data of a successful answer. Throws Failure, or an AbortError if the call was aborted.
export async function read<T>(
  call: Promise<{ data?: T; error?: unknown; response: Response }>,
  used = token.peek(),
): Promise<T> {
  let answer;
  try {
    answer = await call;
  } catch (error) {
    throw noAnswer(error);
  }
  if (answer.data !== undefined) {
    noteAnswer();
    return withVisibleDirections(answer.data);
  }
  throw refusal(answer.response, answer.error, used);
}

// What to throw if a call got no answer: a Failure, or the AbortError if it was aborted.
export function noAnswer(error: unknown): unknown {
  if (error instanceof Failure) return error;
  if (error instanceof DOMException && error.name === "AbortError") return error;
  return new Failure(NO_CONNECTION, "The service did not answer.", "", 0);
}

// Converts an answer with an error to a Failure. After a 401, the user must sign in again.
export function refusal(response: Response, body: unknown, usedToken: string): Failure {
  const envelope = withVisibleDirections((body ?? {}) as Partial<Schemas["ErrorEnvelope"]>).error;
  const failure = new Failure(
    envelope?.code ?? "internal",
    envelope?.message ?? `The answer has the status ${response.status} and cannot be read.`,
    envelope?.request_id ?? response.headers.get("x-request-id") ?? "",
    response.status,
    envelope?.details ?? {},
    Number(response.headers.get("retry-after") ?? 0),
  );
  if (response.status === 401) rejectToken(usedToken, failure);
  return failure;
}
