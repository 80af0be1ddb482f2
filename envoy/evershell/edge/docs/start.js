// This script has its own file, because the page's Content-Security-Policy forbids inline scripts.
const STREAM_SECONDS = 5;

// Reads a stream for STREAM_SECONDS. The page shows an answer when it is complete, and a stream of
// events never completes.
async function fetchBounded(url, request) {
  const response = await fetch(url, request);
  if (!(response.headers.get("content-type") || "").startsWith("text/event-stream")) {
    return response;
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  const timer = setTimeout(() => reader.cancel(), STREAM_SECONDS * 1000);
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += decoder.decode(part.value, { stream: true });
    }
  } finally {
    clearTimeout(timer);
  }
  // A line that begins with a colon is a comment in an event stream.
  text += `: this page reads a stream for ${STREAM_SECONDS} s; `;
  text += "to follow it, use the curl command above\n";
  const { status, statusText, headers } = response;
  return new Response(text, { status, statusText, headers });
}

// The document names the public hosts. The page calls the edge that has served it.
function callThisEdge() {
  const here = { url: window.location.origin, description: "The edge that serves this page." };
  const updateJsonSpec = (update) => (spec) => update({ ...spec, servers: [here] });
  return { statePlugins: { spec: { wrapActions: { updateJsonSpec } } } };
}

SwaggerUIBundle({
  url: "/openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  plugins: [callThisEdge],
  displayRequestDuration: true,
  requestInterceptor: (request) => Object.assign(request, { userFetch: fetchBounded }),
  // Stops the page from sending the document to a public validator.
  validatorUrl: null,
});
