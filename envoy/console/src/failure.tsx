// A call that failed, and the note that shows it: its message, its slug and the id of the call.
import type { components } from "../openapi";

// `slug` is the slug of the service's error, or `no_connection` if there was no answer.
export class Failure extends Error {
  constructor(
    readonly slug: string,
    message: string,
    readonly requestId: string,
    readonly status: number,
    readonly details: Partial<components["schemas"]["ErrorDetails"]> = {},
    readonly retryAfterSeconds = 0,
  ) {
    super(message);
  }
}

export const NO_CONNECTION = "no_connection";

export function FailureNote({ failure, title }: { failure: Failure; title?: string }) {
  const fields = Object.entries(failure.details.fields ?? {});
  const required = failure.details.required ?? [];
  return (
    <div class="note failure" role="alert">
      {title && <strong>{title}</strong>}
      <p>{failure.message}</p>
      {fields.map(([name, problem]) => (
        <p key={name}>
          <code>{name}</code>: {String(problem)}
        </p>
      ))}
      {required.length > 0 && <p>One of these scopes is needed: {required.join(", ")}.</p>}
      <p class="fine">
        Error <code>{failure.slug}</code>
        {failure.requestId && (
          <>
            , request <code class="id">{failure.requestId}</code>
          </>
        )}
      </p>
    </div>
  );
}
