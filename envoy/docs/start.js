// In a file of its own: the page's policy runs no script that is written into it.
const STREAM_SECONDS = 5;

// The page shows an answer once it is complete, and a stream of events never completes. Reads a stream for STREAM_SECONDS.
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
  text += `: this page reads a stream for ${STREAM_SECONDS} s; the curl command above follows it to its end\n`;
  return new Response(text, { status: response.status, statusText: response.statusText, headers: response.headers });
}

SwaggerUIBundle({
  url: "/openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  requestInterceptor: (request) => Object.assign(request, { userFetch: fetchBounded }),
  // Nothing is sent to anyone's validator.
  validatorUrl: null,
});
