// In a file of its own: the page's policy runs no script that is written into it.
SwaggerUIBundle({
  url: "/openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  // Nothing is sent to anyone's validator.
  validatorUrl: null,
});
