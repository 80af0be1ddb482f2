// Says which scope the credential lacks for something that the page therefore does not offer.
import { may, type Scope } from "./credential";
import { caller } from "./session";

export function Denied({ scope, doing }: { scope: Scope; doing: string }) {
  if (!caller.value || may(scope)) return null;
  const whose = caller.value.credential_kind === "api_key" ? "Your key" : "Your sign-in";
  return (
    <p class="fine">
      {whose} may not {doing}: it lacks <code>{scope}</code>.
    </p>
  );
}
