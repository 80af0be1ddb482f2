// An OpenID Connect provider: node provider.mjs PORT CLIENT_SECRET CONSOLE_URL TOKEN_SECONDS
//
// It takes every name with every password. The access tokens are JWTs with the claims that the
// service reads.
import { Provider } from "oidc-provider";

const [port, secret, consoleUrl, tokenSeconds] = process.argv.slice(2);
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
