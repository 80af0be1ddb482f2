// Says on every page that the organization is on hold, and releases it.
import { useEffect, useState } from "preact/hooks";
import { asFailure } from "./connection";
import { may } from "./credential";
import { Dialog } from "./dialog";
import { type Failure, FailureNote } from "./failure";
import { followHold, hold, release } from "./hold";
import { fullTime } from "./text";

export function HoldBanner() {
  const [isAsking, setIsAsking] = useState(false);
  useEffect(() => {
    const stop = new AbortController();
    void followHold(stop.signal);
    return () => stop.abort();
  }, []);
  const held = hold.value;
  if (!held?.on_hold) return null;
  return (
    <div class="hold" role="region" aria-label="Hold">
      <p>
        <strong>On hold</strong> since {held.held_since && fullTime(held.held_since)} by{" "}
        {held.held_by}
        {held.reason && `: ${held.reason}`}. New tasks are refused.
      </p>
      {may("org:hold") && (
        <button type="button" onClick={() => setIsAsking(true)}>
          Release…
        </button>
      )}
      {isAsking && <ReleaseDialog onClose={() => setIsAsking(false)} />}
    </div>
  );
}

function ReleaseDialog({ onClose }: { onClose: () => void }) {
  const [failure, setFailure] = useState<Failure | null>(null);
  const submit = async (event: Event) => {
    event.preventDefault();
    try {
      await release();
      onClose();
    } catch (error) {
      setFailure(asFailure(error));
    }
  };
  return (
    <Dialog title="Release the organization" onClose={onClose}>
      <p>New tasks are accepted again at once. Tasks that were cancelled stay cancelled.</p>
      {failure && <FailureNote failure={failure} title="The hold is still in force." />}
      <form class="buttons" onSubmit={submit}>
        <button type="submit" class="primary">
          Release
        </button>
        <button type="button" onClick={onClose}>
          Back
        </button>
      </form>
    </Dialog>
  );
}
