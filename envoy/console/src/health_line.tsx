// One line that always says whether what the page shows is current.
import { useEffect, useRef } from "preact/hooks";
import { announce } from "./announcer";
import { isNoConnection } from "./connection";
import { type Failure, FailureNote } from "./failure";
import { ageMs, failing, isKnown, isSilent, silentMs, type Source } from "./health";
import { elapsed, seconds, words } from "./text";

export function HealthLine() {
  const wasKnown = useRef(true);
  useEffect(() => {
    if (isKnown.value === wasKnown.current) return;
    wasKnown.current = isKnown.value;
    announce(isKnown.value ? "The service answers again." : "What you see may be out of date.");
  }, [isKnown.value]);
  const sources = failing.value;
  const isLive = isKnown.value && sources.length === 0;
  return (
    <details class={isLive ? "health" : "health wrong"} aria-label="Connection">
      <summary>{text(sources)}</summary>
      <div class="more">
        {isLive && <p>The age of the last answer of the service.</p>}
        {isSilent.value && <p>The console is trying again. What you see is old.</p>}
        {!isSilent.value && sources.map((each) => <Problem key={each.name} source={each} />)}
      </div>
    </details>
  );
}

function Problem({ source }: { source: Source }) {
  const failure = source.failure.value as Failure;
  return <FailureNote failure={failure} title={`Not up to date: ${source.name}.`} />;
}

function text([first]: readonly Source[]): string {
  if (isSilent.value) return `no answer for ${elapsed(silentMs.value)}`;
  const failure = first?.failure.value;
  if (!first || !failure) return `live, ${seconds(ageMs.value)} ago`;
  const what = isNoConnection(failure) ? "no answer" : words(failure.slug);
  return `${first.name}: ${what} for ${elapsed(ageMs.value)}`;
}
