// An error of the service: its message, its slug and the id of the call.
import type { Failure } from "./api";

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
