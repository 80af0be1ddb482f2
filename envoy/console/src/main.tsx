import { signal } from "@preact/signals";
import { render } from "preact";
import { Announcer } from "./announcer";
import { useCaller } from "./credential";
import { HealthLine } from "./health_line";
import { HoldBanner } from "./hold_banner";
import { LastHourPage } from "./last_hour_page";
import { ListPage } from "./list_page";
import { rejection, signOut, token } from "./session";
import { ExpiryNote, SignIn, SignInAgain } from "./sign_in";
import { StopPage } from "./stop_page";
import { WorkspacePage } from "./workspace_page";

// The fragment of the address names the open page. Browsers do not send the fragment to servers.
const fragment = signal(location.hash);
addEventListener("hashchange", () => (fragment.value = location.hash));

function Console() {
  useCaller(token.value);
  if (!token.value) return <SignIn />;
  return (
    <>
      <Header />
      <HoldBanner />
      <ExpiryNote />
      <Page />
      {rejection.value && <SignInAgain failure={rejection.value} />}
      <Announcer />
    </>
  );
}

function Page() {
  const workspaceId = /^#\/workspaces\/([A-Za-z0-9_-]{1,128})$/.exec(fragment.value)?.[1];
  if (workspaceId) return <WorkspacePage key={workspaceId} id={workspaceId} />;
  if (fragment.value === "#/last-hour") return <LastHourPage />;
  return fragment.value === "#/stop" ? <StopPage /> : <ListPage />;
}

function Header() {
  return (
    <header>
      <a href="#/" class="title">
        Evershell<span class="wide"> console</span>
      </a>
      <HealthLine />
      <nav aria-label="Console">
        <a href="#/stop" class="stop">
          Stop everything…
        </a>
        <button type="button" onClick={signOut}>
          Sign out
        </button>
      </nav>
    </header>
  );
}

const root = document.getElementById("console");
if (root) render(<Console />, root);
