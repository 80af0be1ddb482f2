// An OpenID Connect provider: node provider.mjs PORT CLIENT_SECRET CONSOLE_URL TOKEN_SECONDS
//
// The provider accepts every name with every password. The access tokens are JWTs with the claims
// that the service reads. If a refresh token of the user `grace` is used twice, her session ends.
import { Provider, errors } from "oidc-provider";

const [port, secret, consoleUrl, tokenSeconds] = process.argv.slice(2);
const used = new Set();
let isReused = false;
function rotateRefreshToken({ oidc }) {
  const { accountId, jti } = oidc.entities.RefreshToken;
  if (accountId !== "grace") return false;
  isReused ||= used.has(jti);
  used.add(jti);
  if (isReused) throw new errors.InvalidGrant("the refresh token was used twice");
  return true;
}
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "console",
      client_secret: secret,
      redirect_uris: [`${consoleUrl}/signed-in`],
      post_logout_redirect_uris: [consoleUrl],
      grant_types: ["authorization_code", "refresh_token"],
      token_endpoint_auth_method: "client_secret_post",
    },
  ],
  pkce: { required: () => true },
  issueRefreshToken: async () => true,
  rotateRefreshToken,
  features: {
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: "openid",
        audience: "evershell",
        accessTokenTTL: Number(tokenSeconds),
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
  extraTokenClaims: () => ({
    org_id: "org_acme",
    permissions: ["workspace:read", "workspace:write:own", "tasks:write:own"],
  }),
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
