// Says that what is shown may be out of date.
import { now } from "./clock";
import { isNoConnection, lastAnswer, trouble } from "./connection";
import { type Failure, FailureNote } from "./failure";
import { elapsed } from "./text";

export function ConnectionNote({ stream = null }: { stream?: Failure | null }) {
  const failure = trouble.value ?? stream;
  if (!failure || failure.status === 401) return null;
  if (!isNoConnection(failure)) return <FailureNote failure={failure} />;
  return (
    <div class="note warning" role="alert">
      <strong>No connection.</strong> The console is trying again. <Age />
    </div>
  );
}

// The time is not part of the alert: a screen reader would announce it every second.
function Age() {
  if (!lastAnswer.value) return null;
  const age = elapsed(now.value - lastAnswer.value);
  return <span aria-hidden="true">What you see is {age} old.</span>;
}
